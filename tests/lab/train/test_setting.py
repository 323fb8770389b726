"""What a configuration builds: its plan is made on an example, which changes nothing of the training run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import nmlearn as nm
import toy
from nmlearn.lab.train import DataConfig, evaluation, setting, train
from nmlearn.lab.train.ranks import Ranks

CPU = torch.device("cpu")
DENSE = {
    "stem.weight": "first convolution: dense by default, as in the paper",
    "classes.weight": "output layer: dense by default, as in the paper (seen on the example)",
}


@pytest.fixture(autouse=True)
def _toys() -> None:
    toy.register()


def dense(folder: Path) -> dict[str, str]:
    rows = json.loads((folder / "plan.json").read_text())["rows"]
    return {row["name"]: row["reason"] for row in rows if row["pattern"] is None}


def test_a_run_and_its_resumption_plan_on_an_example(tmp_path: Path) -> None:
    config = toy.config(tmp_path / "run", model="toy-swapped", checkpoint_every=3)
    with pytest.raises(toy.Killed):
        train(config, toy.kill_after(8))
    assert dense(tmp_path / "run") == DENSE
    train(config)
    assert dense(tmp_path / "run") == DENSE
    weights = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert {name for name, weight in weights.items() if weight.dim() > 1 and bool((weight == 0).any())} == {
        "hidden.weight",
        "deep.weight",
    }


def test_all_ranks_plan_on_the_same_example(tmp_path: Path) -> None:
    config = toy.config(tmp_path, model="toy-swapped")
    of_ranks = [setting.setting(config, Ranks(number, 1, CPU)) for number in range(2)]
    assert torch.equal(of_ranks[0].example, of_ranks[1].example)
    assert of_ranks[0].example.shape == (1, *toy.Toy.input_shape)
    assert of_ranks[0].sparsifier.plan == of_ranks[1].sparsifier.plan


class Without(nm.Sparsifier):
    """Plans as if no example were given."""

    def __init__(self, model: nn.Module, method: nm.Method, rules: Any, example: Any) -> None:
        super().__init__(model, method, rules)


def test_the_example_changes_no_bit_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With dropout, batch norm and noise, where an example taken from training would show."""
    data = DataConfig("toy", options={"noise": 0.3})
    train(toy.config(tmp_path / "with", data=data))
    monkeypatch.setattr(setting, "Sparsifier", Without)
    train(toy.config(tmp_path / "without", data=data))
    found, expected = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("with", "without"))
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert dense(tmp_path / "with").keys() == dense(tmp_path / "without").keys()


def test_an_example_of_images_of_several_sizes_is_a_list(tmp_path: Path) -> None:
    class Images(toy.Toy):
        def read_eval(self, parts: Any) -> Any:
            return ((list(x), y) for x, y in super().read_eval(parts))

    (found,) = evaluation.example(Images(), CPU, toy.config(tmp_path))
    assert found.shape == toy.Toy.input_shape
