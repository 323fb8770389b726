"""The weights that a recipe names, in modules that ask which version of them a state is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import nets
from nmlearn.errors import FormatError
from nmlearn.lab.train.setting import load_weights


def model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))


def test_weights_are_of_the_version_that_the_model_is(tmp_path: Path) -> None:
    saved, again = nn.Sequential(nets.Versioned(4, 4)), nn.Sequential(nets.Versioned(4, 4))
    save_file(saved.state_dict(), tmp_path / "m.safetensors")
    load_weights(again, tmp_path / "m.safetensors")
    assert torch.equal(saved[0].weight, again[0].weight)
    save_file({"0.weight": saved[0].weight.detach()}, tmp_path / "m.safetensors")
    with pytest.raises(FormatError, match=r"model\.weights.*version 2 is expected, not None"):
        load_weights(again, tmp_path / "m.safetensors")


def test_older_weights_are_converted_by_their_modules(tmp_path: Path) -> None:
    """Batch norms count since their second version."""
    state = model().state_dict()
    del state["1.num_batches_tracked"]
    save_file(state, tmp_path / "m.safetensors")
    again = model()
    load_weights(again, tmp_path / "m.safetensors")
    assert torch.equal(again[0].weight, state["0.weight"]) and again[1].num_batches_tracked == 0
