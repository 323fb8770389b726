"""The recommended way in one call."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import nets
import nmlearn as nm
from nmlearn.errors import ConfigError


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up(self.norm(x))))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 16), Block(16), Block(16), nn.Linear(16, 5))


def data(steps: int = 6) -> list[tuple[Tensor, Tensor]]:
    return nets.batches(steps, (16,), size=16)


def first(batch: Any) -> Any:
    return batch[0]


def loss(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def fits(model: nn.Module, plan: nm.Plan) -> bool:
    own = dict(model.named_parameters())
    return not any(row.grouping.violation(own[row.name] != 0) for row in plan.sparse)


def test_without_a_loss_it_stops_after_compensation() -> None:
    model, again = network(), network()
    done = nm.sparsify(model, "2:4", batches=data(), inputs=first)
    nm.Sparsifier(again, nm.SparseGPT("2:4", refit="pcg")).apply([x for x, _ in data()])
    assert nets.same(nets.snapshot(model), nets.snapshot(again))
    assert fits(model, done.plan) and done.steps == 0 and done.losses is None
    x = data()[0][0]
    gap = ((model(x) - network()(x)).norm() / network()(x).norm()).detach()
    assert done.change == pytest.approx(float(gap), rel=1e-4) and 0 < done.change < 1
    assert "verified" in str(done) and set(done.seconds) == {"pruning"}


def test_with_a_loss_it_trains_what_is_left_and_learns_from_the_model_as_it_was() -> None:
    model = network().eval()
    done = nm.sparsify(model, "1:4", batches=data(), inputs=first, loss=loss, steps=60, lr=3e-3)
    assert fits(model, done.plan) and not model.training
    assert done.losses is not None and done.losses[1] < 0.97 * done.losses[0]
    alone = network()
    nm.sparsify(alone, "1:4", batches=data(), inputs=first, loss=loss, steps=60, lr=3e-3, distillation=False)
    dense, x = network(), data()[0][0]
    gaps = [float((net[:3](x) - dense[:3](x)).detach().square().sum()) for net in (model, alone)]
    assert gaps[0] < gaps[1]
    assert not model._forward_hooks and not model._forward_pre_hooks


def test_methods_that_learn_while_training_and_dense_training() -> None:
    model = network()
    method = nm.LBC("2:4", prior="magnitude", end=0.2)
    done = nm.sparsify(model, method=method, batches=data(), inputs=first, loss=loss, steps=40)
    assert fits(model, done.plan) and done.change == 0 and "pruning" not in done.seconds
    model = network()
    done = nm.sparsify(model, method=nm.Dense("2:4"), batches=data(), inputs=first, loss=loss, steps=5)
    assert all(bool((p != 0).all()) for p in model.parameters())


def test_the_arms_of_a_comparison_see_the_same_steps() -> None:
    """Dense by this call is AdamW with the schedule that the page tells."""
    model, other = network(), network()
    nm.sparsify(model, method=nm.Dense("2:4"), batches=data(), inputs=first, loss=loss, steps=10, distillation=False)
    optimizer = torch.optim.AdamW(other.parameters(), 1e-3, weight_decay=0.01)
    for step in range(10):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(step + 1, (10 - step) / 9)
        optimizer.zero_grad()
        loss(other, data()[step % 6]).backward()
        nn.utils.clip_grad_norm_(other.parameters(), 1.0)
        optimizer.step()
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_batch_norms_are_estimated_again() -> None:
    model, x = nets.convnet().eval(), [x for x, _ in nets.batches(4)]
    nm.sparsify(model, "1:4", batches=x)
    seen: list[Tensor] = []
    hook = model.norm.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    for some in x:
        model(some)
    hook.remove()
    mean = torch.stack([some.mean((0, 2, 3)) for some in seen]).mean(0)
    torch.testing.assert_close(model.norm.running_mean, mean, rtol=1e-4, atol=1e-5)
    assert model.norm.momentum == 0.1 and not model.training


def test_a_speedup_chooses_the_patterns(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def told(model: nn.Module, example: Any, **options: Any) -> Any:
        asked.update(options)
        return {"1.up": "1:4", "1.down": "2:4", "2": None, "0": None, "3": None}

    monkeypatch.setattr("nmlearn.acceleration.sparsify.allocate", told)
    done = nm.sparsify(network(), speedup=1.5, batches=data(), inputs=first)
    assert asked["budget"] == {"speedup": 1.5} and len(asked["batches"]) == 6
    patterns = {row.name: str(row.pattern) for row in done.plan.sparse}
    assert patterns == {"1.up.weight": "1:4", "1.down.weight": "2:4"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "give one of them"),
        ({"pattern": "2:4", "speedup": 2.0}, "give one of them"),
        ({"pattern": "2:4", "loss": loss}, "belong together"),
        ({"pattern": "2:4", "steps": 3}, "belong together"),
        ({"method": nm.LBC("2:4")}, "learns in training"),
        ({"pattern": "2:4", "calibrate": 0}, "a batch at least"),
        ({"pattern": "2:4", "batches": []}, "nothing to calibrate"),
        ({"pattern": "2:4", "inputs": lambda batch: batch}, "takes|forward"),
    ],
)
def test_choices_that_make_no_sense_are_refused(options: dict[str, Any], said: str) -> None:
    model = network()
    before = nets.snapshot(model)
    with pytest.raises(ConfigError, match=said):
        nm.sparsify(model, **({"batches": data(), "inputs": first} | options))
    assert nets.same(before, nets.snapshot(model))


def test_an_iterator_that_ends_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="only once"):
        nm.sparsify(network(), "2:4", batches=iter(data()), inputs=first, loss=loss, steps=9)


def test_a_model_keeps_its_hooks_and_flags_when_a_loss_fails() -> None:
    model = network()
    model[1].eval()

    def broken(model: nn.Module, batch: Any) -> Tensor:
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        nm.sparsify(model, "2:4", batches=data(), inputs=first, loss=broken, steps=5)
    assert model.training and not model[1].training and not model[1]._forward_hooks
    optimizer = nets.sgd(model)
    nm.Sparsifier(copy.copy(model), nm.Keep("2:4")).attach(optimizer, 2)
