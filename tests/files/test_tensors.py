"""States of files in modules that ask which version of them a state is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import nets
import nmlearn as nm


class Turned(nn.Linear):
    """Since its second version the bias is the other way round: older states are turned, newer ones must not be."""

    _version = 2

    def _load_from_state_dict(self, state, prefix, metadata, *found):
        if (metadata.get("version") or 1) < 2:
            state[prefix + "bias"] = state[prefix + "bias"].flip(0)
        super()._load_from_state_dict(state, prefix, metadata, *found)


def versioned() -> nn.Sequential:
    model = nn.Sequential(nets.Versioned(16, 16), nn.BatchNorm1d(16), nn.Sequential(Turned(16, 8)))
    model.append(model[0])  # tied: a packed file stores it once
    return model


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("wrapped", [True, False])
def test_a_state_is_of_the_version_that_the_model_is(packed: bool, wrapped: bool, tmp_path: Path) -> None:
    saved, again = versioned(), versioned()
    saved[0].weight.data[:, ::2] = 0
    nm.save(saved, tmp_path / "m.safetensors", packed=packed)
    if wrapped:  # with a part more in the names of the state
        again[2] = torch.compile(again[2], backend="eager")
    nm.load(tmp_path / "m.safetensors", again)
    for a, b in zip(saved.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_the_tensors_given_back_are_the_files(tmp_path: Path) -> None:
    saved = versioned()
    nm.save(saved, tmp_path / "m.safetensors")
    found = nm.load(tmp_path / "m.safetensors", versioned())
    assert type(found) is dict and found.keys() == saved.state_dict().keys()
    assert torch.equal(found["2.0.bias"], saved[2][0].bias)
