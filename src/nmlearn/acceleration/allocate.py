"""``allocate``: a pattern for each weight, such that a budget is kept and the least is lost."""

from __future__ import annotations

import glob
import math
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from numbers import Real
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args

from torch import nn

from nmlearn.acceleration import costs as costing
from nmlearn.acceleration import measured, options
from nmlearn.acceleration.allocation import Allocation, AllocationRow, Uniform
from nmlearn.acceleration.costs import Costs
from nmlearn.acceleration.options import Options
from nmlearn.errors import ConfigError, DataError, check_name
from nmlearn.learn import losses as losing
from nmlearn.learn.calibration import MEMORY, Seen, listed
from nmlearn.learn.losses import Criterion, Losses
from nmlearn.learn.refusals import refuse_ranks
from nmlearn.maths.allocation import choose
from nmlearn.maths.groups import Grouping
from nmlearn.maths.pattern import Pattern
from nmlearn.model.names import unwrap
from nmlearn.model.plan import Rule

Budget = Literal["parameters", "bytes", "flops", "speedup"]
BUDGETS: tuple[str, ...] = get_args(Budget)
_WITH_EXAMPLE = ("flops", "speedup")


def allocate(
    model: nn.Module,
    example: Any = None,
    *,
    budget: Mapping[Budget, float],
    patterns: Iterable[str | Pattern] | None = None,
    criterion: Criterion | None = None,
    batches: Iterable[Any] | None = None,
    seen: Seen | None = None,
    rules: Mapping[str, Rule] | None = None,
    memory: int = MEMORY,
    cache: Path | None = measured.DEFAULT,
) -> Allocation:
    """Choose N:M, or dense, for each weight, such that the sum of their losses is the least that a budget allows.

    The losses are those of :mod:`nmlearn.learn.losses`, each of one weight pruned alone. Their sum is made least
    exactly, but for the rounding of costs in :func:`nmlearn.maths.allocation.choose`. The model stays as it is.

    Args:
        model: any module, with the weights that it shall become sparse from: trained ones, for losses to mean much.
        example: a tensor, a tuple of arguments or a dict of keyword arguments; needed for "flops" and "speedup".
        budget: one of these, for the whole model and relative to the dense one:
            ``{"parameters": 0.3}`` the share of values that are kept;
            ``{"bytes": 0.3}`` the share of the bytes of the tensors in a file of ``nm.save``;
            ``{"flops": 0.3}`` the share of the multiply-adds with weights on the example;
            ``{"speedup": 2.0}`` the dense time over the sparse one on the example, by the times of single layers that
            :func:`nmlearn.acceleration.accelerate.accelerate` measures on this machine.
        patterns: what to choose from, in addition to dense. Default: those of 2:4, 1:4, 1:8 and 1:16 that fit a weight.
        criterion: what a loss is of: "output" of the layer, output of the "model", or "magnitude". Default: "model"
            with batches, "output" with ``seen`` alone, "magnitude" with neither.
        batches: to calibrate with and to run, as for :func:`nmlearn.learn.calibration.calibrate`.
        seen: Gram matrices from ``nm.calibrate``, where they are at hand.
        rules: as for a sparsifier. What a rule is about is not chosen: it has the rule's pattern, or stays dense.
        memory: bytes that the sums of one stage of calibration, and pieces of inputs, may take together.
        cache: the file of measured times, as for ``nm.accelerate``; None always measures.

    Returns:
        rules for :class:`nmlearn.learn.sparsifier.Sparsifier`, with those that were given; print it for the reasons.

    Raises:
        ConfigError: a budget that is none, that cannot be reached, or that the dense model keeps; a criterion without
            what it needs; batches that the model refuses.
        PatternError: a pattern that is none, or that fits no weight.
        PlanError: no weight to choose a pattern for; rules that cannot be followed; a weight that no batch reaches.
        AttachError: a model in DDP, or with sharded weights.
        KernelError: an example that the model's forward refuses.
        DataError: losses that are not finite, or sums that are not those of the weights' inputs.
    """
    name, wanted = _read_budget(budget)
    if name in _WITH_EXAMPLE and example is None:
        _refuse("example", "none", f"a budget of {name} is for one", "give an input of the model")
    refuse_ranks(
        model,
        "allocate",
        "each rank would choose by its own batches and times",
        "allocate on one rank before the model is wrapped, and give the rules to all",
    )
    model, given = unwrap(model), None if batches is None else listed(batches)
    criterion = _read_criterion(criterion, given, seen)
    found = options.find(model, patterns, rules or {})
    if criterion != "magnitude":
        found = options.seen_only(model, found, seen)
    options.check_some(found)
    costs = _costs(model, name, found, example, cache)
    _check_reach(name, wanted, costs)
    losses = _losses(model, found, criterion, given, seen, memory)
    best, chosen = _best(name, wanted, found, costs, losses)
    return _report(name, wanted, criterion, found, best, losses, chosen, dict(rules or {}))


def _costs(model: nn.Module, name: Budget, found: Options, example: Any, cache: Path | None) -> list[Costs]:
    """What the options cost; several where the model can be run in several ways."""
    if name == "speedup":
        return costing.times(model, found, example, cache)
    if name == "flops":
        return [costing.flops(model, found, example)]
    return [(costing.parameters if name == "parameters" else costing.packed_bytes)(model, found)]


def _losses(
    model: nn.Module, found: Options, criterion: Criterion, batches: list[Any] | None, seen: Seen | None, memory: int
) -> Losses:
    """The losses of all options: none for dense, and for what is not chosen."""
    free = found.free
    sparse = {row.name: [g for g in found.of[row.name] if g is not None] for row in free}
    if criterion == "magnitude":
        lost = losing.by_magnitude(free, sparse)
    else:
        lost = losing.by_inputs(model, free, sparse, criterion, batches=batches, seen=seen, memory=memory)
    for name, some in lost.items():
        if not all(map(math.isfinite, some)):
            wrong, fix = f"its losses are {', '.join(map(str, some))}", "look for values that overflow or are lost"
            raise DataError(where=name, given=f'criterion "{criterion}"', wrong=wrong, fix=fix)
    return {name: (0.0, *lost[name]) if name in lost else (0.0,) for name in found.of}


def _best(
    name: Budget, wanted: Fraction, found: Options, costs: Sequence[Costs], losses: Losses
) -> tuple[Costs, dict[str, int]]:
    """The choices with the least losses, and the costs that they are within."""
    solutions: list[tuple[float, int, dict[str, int]]] = []
    for i, some in enumerate(costs):
        chosen = choose(
            list(some.of.values()), [losses[each] for each in some.of], _most(name, wanted, some) - some.rest
        )
        if chosen is not None:
            picked = dict(zip(some.of, chosen, strict=True))
            solutions.append((_sum(losses, picked), i, picked))
    _, i, picked = min(solutions, key=lambda one: one[:2])
    return costs[i], picked


def _sum(losses: Losses, chosen: Mapping[str, int]) -> float:
    return math.fsum(losses[name][i] for name, i in chosen.items())


# What it is told


def _read_budget(budget: Any) -> tuple[Any, Fraction]:
    """The name and the value of a budget."""
    fix = f'give one of {", ".join(BUDGETS)}, such as {{"parameters": 0.3}}'
    if not isinstance(budget, Mapping) or len(budget) != 1:
        _refuse("budget", repr(budget), "it is not one budget", fix)
    [(name, value)] = budget.items()
    check_name("budget", str(name), BUDGETS, "budget")
    if not isinstance(value, Real) or isinstance(value, bool) or not 0 < float(value) < math.inf:
        _refuse(f"budget[{name!r}]", repr(value), "it is no positive number", fix)
    wanted = Fraction(repr(float(value)))  # what was written, not the nearest binary fraction
    if name == "speedup" and wanted <= 1:
        _refuse("budget['speedup']", value, "the dense model is as fast", "give more than 1, such as 2.0")
    if name != "speedup" and wanted >= 1:
        _refuse(f"budget[{name!r}]", value, "the dense model keeps it", "give a share below 1, such as 0.3")
    return name, wanted


def _read_criterion(criterion: str | None, batches: list[Any] | None, seen: Seen | None) -> Criterion:
    """The criterion, which has what it needs."""
    if criterion is None:
        return "model" if batches is not None else "output" if seen is not None else "magnitude"
    check_name("criterion", criterion, get_args(Criterion), "criterion")
    if criterion == "model" and batches is None:
        _refuse("criterion", '"model"', "it runs the model on batches", "give batches=, what the model takes")
    if criterion == "output" and batches is None and seen is None:
        fix = "give batches=, what the model takes, or seen=nm.calibrate(model, batches)"
        _refuse("criterion", '"output"', "it needs the inputs of layers", fix)
    return criterion  # type: ignore[return-value]


def _check_reach(name: Budget, wanted: Fraction, costs: Sequence[Costs]) -> None:
    """Refuse a budget that no choice reaches, and one that leaves nothing to choose.

    Raises:
        ConfigError: it says what the sparsest choices come to.
    """
    where, given = f"budget[{name!r}]", float(wanted)
    sparsest = min(costs, key=lambda some: some.rest + sum(map(min, some.of.values())))
    best = sparsest.rest + sum(map(min, sparsest.of.values()))
    if best > _most(name, wanted, sparsest):
        notes = sorted(set(filter(None, sparsest.notes.values())))
        wrong = f"these patterns come to {_rounded(name, best, sparsest.dense):g} at best" + "".join(
            f"; {note}" for note in notes[:2]
        )
        fix = "give a budget that is no smaller, sparser patterns, or rules for weights that stay dense by default"
        _refuse(where, given, wrong, fix if name != "speedup" else fix.replace("no smaller", "no larger"))
    if any(some.rest + sum(each[0] for each in some.of.values()) <= _most(name, wanted, some) for some in costs):
        fix = "give a smaller budget, or fewer rules with patterns" if name != "speedup" else "give a larger one"
        _refuse(where, given, "it is kept with every weight that is chosen left dense", fix)


def _rounded(name: Budget, cost: int, dense: int) -> float:
    """What a cost comes to, rounded so that it can be asked for."""
    digits = 1000
    if name == "speedup":
        return math.floor(digits * Fraction(dense, cost)) / digits
    return math.ceil(10 * digits * Fraction(cost, dense)) / (10 * digits)


def _most(name: Budget, wanted: Fraction, costs: Costs) -> int:
    """The largest cost within the budget."""
    return math.floor(costs.dense / wanted if name == "speedup" else costs.dense * wanted)


def _refuse(where: str, given: object, wrong: str, fix: str) -> NoReturn:
    raise ConfigError(where=where, given=given, wrong=wrong, fix=fix)


# What it tells


def _report(
    name: Budget,
    wanted: Fraction,
    criterion: Criterion,
    found: Options,
    costs: Costs,
    losses: Losses,
    chosen: Mapping[str, int],
    rules: dict[str, Rule],
) -> Allocation:
    groupings = {each: found.of[each][i] for each, i in chosen.items()}
    rules |= {
        glob.escape(each): None if grouping is None else grouping.pattern
        for each, grouping in groupings.items()
        if found.open(each)
    }
    scale = costs.dense if name != "speedup" else costing.PICOSECONDS / 1000
    rows = tuple(_row(each, found, costs, losses, grouping, scale) for each, grouping in groupings.items())
    uniform = []
    for pattern in found.patterns:
        picked = {each: _uniform(some, pattern) for each, some in found.of.items()}
        uniform.append(Uniform(pattern, _reached(name, costs, picked), _sum(losses, picked)))
    return Allocation(
        rules=rules,
        rows=rows,
        budget=name,
        wanted=float(wanted),
        reached=_reached(name, costs, chosen),
        criterion=criterion,
        loss=_sum(losses, chosen),
        uniform=tuple(uniform),
        whole_ms=costs.dense / scale if name == "speedup" else None,
    )


def _row(
    name: str, found: Options, costs: Costs, losses: Losses, chosen: Grouping | None, scale: float
) -> AllocationRow:
    some = found.of[name]
    patterns = [None if grouping is None else grouping.pattern for grouping in some]
    free = len(some) > 1
    return AllocationRow(
        name=name,
        shape=found.rows[name].shape,
        pattern=None if chosen is None else chosen.pattern,
        costs={pattern: cost / scale for pattern, cost in zip(patterns, costs.of[name], strict=True)},
        losses={pattern: loss for pattern, loss in zip(patterns, losses[name], strict=True) if pattern and free},
        reason="; ".join(filter(None, (found.reasons[name], costs.notes.get(name, "") if free else ""))),
    )


def _uniform(some: Sequence[Grouping | None], pattern: Pattern) -> int:
    """The choice of a pattern where there is one, else of dense or of what a rule says."""
    return next((i for i, grouping in enumerate(some) if grouping is not None and grouping.pattern == pattern), 0)


def _reached(name: Budget, costs: Costs, chosen: Mapping[str, int]) -> float:
    cost = costs.rest + sum(costs.of[each][i] for each, i in chosen.items())
    return costs.dense / cost if name == "speedup" else cost / costs.dense
