"""Gradients and losses that are not finite: scores take nothing of them in, and `nmlearn train` leaves the step out."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

import nmlearn as nm
import toy
from nets import batches, convnet, sgd, snapshot
from nmlearn.errors import StateError
from nmlearn.lab.train import DataConfig, OptimConfig, average, checkpoints, train
from nmlearn.lab.train.finite import MOST_IN_A_ROW
from nmlearn.native import training

BAD = [math.nan, math.inf, -math.inf]
# Nothing is removed while these tests look: a removal refuses the weights that the optimizer made of such gradients.
METHODS = [
    nm.LBC("2:4", start=0.5, end=1.0),
    nm.LBC("2:4", start=0.5, end=1.0, scores="explicit"),
    nm.LBC("2:4", start=0.5, end=1.0, scores="explicit", score_optimizer="adamw"),
]
OPTIMIZERS = {"sgd": sgd, "adamw": lambda model: torch.optim.AdamW(model.parameters(), 0.01)}


@pytest.fixture(autouse=True)
def _toys() -> None:
    toy.register()


def backward(model: torch.nn.Module, optimizer: torch.optim.Optimizer, batch: Any) -> None:
    optimizer.zero_grad()
    F.cross_entropy(model(batch[0]), batch[1]).backward()


def states(sparsifier: nm.Sparsifier) -> dict[str, dict[str, torch.Tensor]]:
    found = sparsifier.state_dict()["weights"]
    return {name: {key: t.clone() for key, t in entry["state"].items()} for name, entry in found.items()}


def attached(method: nm.Method, optimizer: str = "sgd", steps: int = 40) -> tuple[Any, Any, nm.Sparsifier]:
    model = convnet()
    made = OPTIMIZERS[optimizer](model)
    sparsifier = nm.Sparsifier(model, method).attach(made, steps)
    for batch in batches(3):
        backward(model, made, batch)
        made.step()
    return model, made, sparsifier


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("method", METHODS, ids=["factored", "explicit", "explicit-adamw"])
@pytest.mark.parametrize("kernels", [True, False])
def test_scores_take_in_no_gradient_that_is_not_finite(
    monkeypatch: pytest.MonkeyPatch, method: nm.Method, optimizer: str, bad: float, kernels: bool
) -> None:
    """In one weight: other groups learn to the same bits as ever. In all: no score is lost."""
    if not kernels:
        monkeypatch.setattr(training, "_library", lambda: None)
    found = []
    for spoil in (False, True):
        model, made, sparsifier = attached(method, optimizer)
        backward(model, made, batches(4)[3])
        if spoil:
            model.hidden.weight.grad[3, 5] = bad
        before = states(sparsifier)["hidden.weight"]["score"]
        made.step()
        found.append(states(sparsifier))
    good, spoilt = found
    a, b = good["hidden.weight"]["score"].view(32, 8, -1), spoilt["hidden.weight"]["score"].view(32, 8, -1)
    others = torch.ones(32, 8, dtype=torch.bool)
    others[3, 1] = False
    assert torch.equal(a[others], b[others]) and b.isfinite().all()
    if method.scores == "factored":
        assert b[3, 1, 1] == before.view(32, 8, -1)[3, 1, 1]  # the score of [3, 5] stays as it was
        assert torch.equal(a[3, 1, [0, 2, 3]], b[3, 1, [0, 2, 3]])
    for p in model.parameters():
        p.grad.fill_(bad)
    made.step()
    assert all(t.isfinite().all() for state in states(sparsifier).values() for t in state.values())


@pytest.mark.parametrize("bad", BAD)
def test_a_lost_weight_is_never_removed_silently(bad: float) -> None:
    """The optimizer does take the gradient in: the next removal says so, by the weight's name."""
    model, made, _ = attached(nm.LBC("2:4", start=0.2, end=0.5))
    with torch.no_grad():
        model.hidden.weight[0, 0] = bad
    with pytest.raises(StateError) as caught:
        for _ in range(30):
            for p in model.parameters():
                p.grad = torch.zeros_like(p)
            made.step()
    assert caught.value.where == "hidden.weight"
    assert "1 of 1024 values" in caught.value.given


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("method", [nm.SRSTE("2:4"), nm.OneShot("2:4", at=0.5), nm.Gradual("2:4")])
def test_magnitudes_that_are_not_finite_rank_last(method: nm.Method, bad: float) -> None:
    weight = torch.tensor([[bad, 1.0, -2.0, 3.0, 0.5, bad, bad, 0.25, bad, bad, bad, 1.0]])
    layer = torch.nn.Linear(12, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(weight)
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    sparsifier = nm.Sparsifier(layer, method, {"*": "2:4"}).attach(optimizer, 1)
    layer.weight.grad = torch.zeros_like(weight)
    optimizer.step()
    mask = sparsifier.masks()["weight"].view(3, 4)
    assert mask[0].tolist() == [False, False, True, True]
    assert mask[1].tolist() == [True, False, False, True]
    assert mask[2, 3] and int(mask.sum()) <= 6


@pytest.mark.parametrize("method", [nm.LBC("2:4", end=1.0), nm.SRSTE("2:4"), nm.Gradual("2:4", end=1.0)])
def test_a_step_that_is_left_out_counts_for_the_schedule_and_learns_nothing(method: nm.Method) -> None:
    model = convnet()
    optimizer = sgd(model)
    sparsifier = nm.Sparsifier(model, method).attach(optimizer, 20)
    for number, batch in enumerate(batches(20)):
        backward(model, optimizer, batch)
        if number % 4 == 1:
            kept, scores = snapshot(model), states(sparsifier)
            sparsifier.skip_step()
            now, masks = snapshot(model), sparsifier.masks()
            for name in now:
                mask = masks.get(name)
                assert torch.equal(now[name], kept[name] if mask is None else torch.where(mask, kept[name], 0.0))
            for name, state in states(sparsifier).items():
                for key in {"score", "momentum", "dense"} & state.keys():
                    assert torch.equal(state[key], scores[name][key])
        else:
            optimizer.step()
    assert sparsifier.progress == 1.0
    sparsifier.finalize()


def events(folder: Path, kind: str) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]


@pytest.mark.parametrize("changes", [{}, {"accumulate": 2}, {"optim": OptimConfig(lr=0.05, clip_norm=1.0)}])
@pytest.mark.parametrize("method", ["lbc", "srste"])
def test_a_bad_batch_costs_its_step_and_no_more(tmp_path: Path, method: str, changes: dict[str, Any]) -> None:
    """It goes through batch norm, whose statistics stay finite. (One of three epochs leaves the example out.)"""
    data = DataConfig("toy", options={"bad": 5})
    summary = train(toy.config(tmp_path, method, data=data, ema=0.9, **changes))
    left_out = events(tmp_path, "left_out")
    assert summary["left_out"] == len(left_out) == 2
    assert all(event["in_a_row"] == 1 and 0 < event["lr"] <= 0.05 for event in left_out)
    assert summary["accuracy"] > 0.8 and summary["ema_accuracy"] > 0.5 and summary["density"] == 0.5
    for name in ("model", "average"):
        assert all(t.isfinite().all() for t in load_file(tmp_path / "model" / f"{name}.safetensors").values())
    assert all(event["loss"] is not None for event in events(tmp_path, "train"))


def test_a_step_that_is_left_out_does_not_move_the_average(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    followed, follow = [], average.Average.follow

    def seen(self: average.Average, model: torch.nn.Module, step: int) -> None:
        followed.append(step)
        follow(self, model, step)

    monkeypatch.setattr(average.Average, "follow", seen)
    train(toy.config(tmp_path, data=DataConfig("toy", options={"bad": 5}), ema=0.9))
    left_out = {event["step"] for event in events(tmp_path, "left_out")}
    assert left_out and left_out.isdisjoint(followed)
    assert sorted({*followed, *left_out}) == list(range(1, len(followed) + len(left_out) + 1))


def test_many_in_a_row_end_the_run(tmp_path: Path) -> None:
    with pytest.raises(StateError) as caught:
        train(toy.config(tmp_path, data=DataConfig("toy", options={"poison": 1}), log_every=1))
    assert "training step 7 " in caught.value.where
    assert "learning rate of 0.0" in caught.value.given
    assert f"{MOST_IN_A_ROW} steps" in caught.value.wrong
    assert [event["step"] for event in events(tmp_path, "left_out")] == [7, 8, 9, 10]
    state = checkpoints.load(tmp_path / "checkpoints" / "last.pt")
    assert state["step"] == 6 and all(t.isfinite().all() for t in state["model"].values())


def test_weights_that_are_not_finite_reach_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A finite loss with a gradient that is not: the next checkpoint would keep what it did."""
    step = torch.optim.SGD.step
    seen: list[int] = []

    def spoil(self: torch.optim.SGD, closure: Any = None) -> Any:
        seen.append(1)
        if len(seen) == 9:
            self.param_groups[0]["params"][0].grad[0] = math.nan
        return step(self, closure)

    monkeypatch.setattr(torch.optim.SGD, "step", spoil)
    with pytest.raises(StateError, match=r"1 weights are not finite, the first is 0\.weight"):
        train(toy.config(tmp_path, "dense", checkpoint_every=3))
    assert checkpoints.load(tmp_path / "checkpoints" / "last.pt")["step"] == 6
