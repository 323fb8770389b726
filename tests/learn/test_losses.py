"""What pruning one weight costs, against models with that weight pruned, run and compared."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import nets
import nmlearn as nm
from calibration_models import Language, tokens
from nmlearn.errors import ConfigError, DataError
from nmlearn.learn import losses
from nmlearn.learn.calibration import MEMORY
from nmlearn.model.plan import PlanRow, plan

PATTERNS = ("2:4", "1:8")


def sparse_rows(model: nn.Module) -> tuple[PlanRow, ...]:
    return plan(model, nm.OneShot("1:1")).sparse


def choices(rows: Sequence[PlanRow], patterns: Sequence[str] = PATTERNS) -> dict[str, list[nm.Grouping]]:
    return {row.name: [nm.Grouping(nm.Pattern(p), row.grouping.axis) for p in patterns] for row in rows}


def measured(model: nn.Module, criterion: Any, batches: Any, seen: Any = None) -> losses.Losses:
    rows, how = sparse_rows(model), {"batches": batches, "seen": seen, "memory": MEMORY}
    return losses.by_inputs(model, rows, choices(rows), criterion, **how)


def images() -> list[Tensor]:
    return [x for x, _ in nets.batches(3)]


def trained() -> nn.Module:
    model = nets.convnet()
    nets.train(model, nets.sgd(model), nets.batches(10))
    return model


def outputs(module: nn.Module, model: nn.Module, batches: Sequence[Tensor]) -> Tensor:
    """What a module of the model gives in evaluation mode, one row after the other, without its bias."""
    found: list[Tensor] = []
    hook = module.register_forward_hook(lambda _, __, out: found.append(out.double()))
    bias = getattr(module, "bias", None)
    with torch.no_grad():
        for x in batches:
            model.eval()(x)
    hook.remove()
    shape = [1, -1, *[1] * (found[0].dim() - 2)]
    return torch.cat(found) - (bias.detach().double().view(shape) if isinstance(bias, Tensor) else 0)


def relative(now: Tensor, then: Tensor) -> float:
    return float((now - then).square().sum() / then.square().sum())


def test_they_are_the_errors_of_a_model_with_one_weight_pruned_by_sparsegpt() -> None:
    model, x = trained(), images()
    own, whole = (measured(model, criterion, x) for criterion in ("output", "model"))
    assert list(own) == list(whole) == ["conv.weight", "grouped.weight", "hidden.weight"]
    for name, found in own.items():
        for i, pattern in enumerate(PATTERNS):
            pruned = copy.deepcopy(model)
            nm.Sparsifier(pruned, nm.SparseGPT(pattern), rules={"": None, name: pattern}).apply(x)
            at = name.removesuffix(".weight")
            layers = [outputs(m.get_submodule(at), m, x) for m in (pruned, model)]
            assert found[i] == pytest.approx(relative(*layers), rel=1e-3)
            assert whole[name][i] == pytest.approx(relative(outputs(pruned, pruned, x), outputs(model, model, x)), 1e-4)
        assert 0 < found[0] < found[1] < 1


def test_magnitudes_are_those_of_the_pruned_weight_alone() -> None:
    patterns, rows = ("2:4", "1:4"), sparse_rows(nets.Layers())
    found = losses.by_magnitude(rows, choices(rows, patterns))
    assert len(found) > 6  # convolutions of one to three dimensions, a transposed one, attention, a recurrent layer
    for row in rows:
        dense = row.parameter.detach().double()
        for i, pattern in enumerate(patterns):
            groups = dense.movedim(row.grouping.axis, -1).flatten(0, -2).unflatten(-1, (-1, nm.Pattern(pattern).m))
            smallest = groups.square().sort(-1).values[..., : -nm.Pattern(pattern).n]
            assert found[row.name][i] == pytest.approx(float(smallest.sum() / dense.square().sum()), rel=1e-5)


@pytest.mark.parametrize("criterion", ["output", "model"])
def test_gram_matrices_that_are_given_are_taken(criterion: str) -> None:
    model, x = trained(), images()
    seen = nm.calibrate(model, x)
    taken, made = measured(model, criterion, x, seen), measured(model, criterion, x)
    for name in made:
        assert taken[name] == pytest.approx(made[name], rel=1e-3)
    if criterion == "output":
        assert measured(model, criterion, None, seen) == taken


@pytest.mark.parametrize("criterion", ["output", "model"])
@pytest.mark.parametrize("given", [True, False])
def test_the_model_is_as_before(criterion: str, given: bool) -> None:
    model, x = trained().train(), images()
    model.hidden.eval()
    before, modes = nets.snapshot(model), [m.training for m in model.modules()]
    measured(model, criterion, x, nm.calibrate(model, x) if given else None)
    assert nets.same(before, nets.snapshot(model)) and modes == [m.training for m in model.modules()]
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert all(p.grad is not None for p in model.parameters())


def test_an_error_while_a_weight_is_pruned_puts_it_back() -> None:
    model, x = trained(), images()
    before, calls = nets.snapshot(model), []

    def refuse(*_: object) -> None:
        calls.append(0)
        if len(calls) > 2 * len(x):  # behind the dense outputs and the calibration of the first stage
            raise RuntimeError("no more")

    model.register_forward_pre_hook(refuse)
    with pytest.raises(ConfigError, match="no more"):
        measured(model, "model", x)
    assert nets.same(before, nets.snapshot(model))


def test_a_small_bound_on_memory_gives_the_same_losses() -> None:
    model, data = Language(), [tokens()]
    rows = sparse_rows(model)
    small, large = (
        losses.by_inputs(model, rows, choices(rows), "output", batches=data, seen=None, memory=memory)
        for memory in (8_000, MEMORY)
    )
    assert len(small) == 12
    for name in small:
        assert small[name] == pytest.approx(large[name], rel=1e-3)


def test_a_weight_of_low_precision_and_one_of_zeros() -> None:
    model, x = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 4)).bfloat16(), torch.randn(8, 16)
    with torch.no_grad():
        model[1].weight.zero_()
    found = measured(model, "output", [x.bfloat16()])
    assert found["1.weight"] == (0.0, 0.0) and 0 < found["0.weight"][0] < found["0.weight"][1] < 1
    assert losses.by_magnitude(sparse_rows(model), choices(sparse_rows(model)))["1.weight"] == (0.0, 0.0)


def test_what_cannot_be_measured_is_refused() -> None:
    model, x = trained(), images()
    with pytest.raises(DataError, match="it has no Gram matrices"):
        measured(model, "output", None, nm.calibrate(model, x, "sums"))
    wider = nets.convnet(width=32)
    with pytest.raises(DataError, match=r"not those of a weight of shape \[32, 16, 3, 3\]"):
        measured(model, "output", None, nm.calibrate(wider, x))
    bad = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    with pytest.raises(DataError, match="outputs on them sum to nan"):
        measured(bad, "model", [torch.full((2, 16), math.nan)])

    class Says(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = nn.Linear(16, 16), nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.layer(x)).argmax(-1)

    with pytest.raises(ConfigError, match="no floating-point tensor"):
        measured(Says(), "model", [torch.randn(2, 16)])
