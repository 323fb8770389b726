"""One-shot methods without an optimizer: every weight gets its pattern at once, by calibration where that is needed."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from nmlearn.errors import AttachError, ConfigError
from nmlearn.learn import calibration, ending
from nmlearn.learn.ending import Summary
from nmlearn.learn.living import held_elsewhere
from nmlearn.learn.refusals import refuse_ranks, replaced
from nmlearn.learn.weight import SparseWeight
from nmlearn.maths import masks
from nmlearn.maths.inputs import Inputs
from nmlearn.methods.method import Method
from nmlearn.model.plan import PlanRow
from nmlearn.model.shards import is_sharded, local


@torch.no_grad()
def apply(sparsifier: Any, batches: Iterable[Any] | None, memory: int) -> Summary:
    """What :meth:`nmlearn.learn.sparsifier.Sparsifier.apply` does; see there."""
    method, model, rows = sparsifier.method, sparsifier.model, sparsifier.plan.sparse
    _check_weights(sparsifier)
    _check_method(method, rows)
    before = ending.kept({row.name: row.parameter for row in rows})
    if method.needs == "nothing":
        for row in rows:
            _solve(method, row, None)
    elif batches is None:
        fix = "give batches: sparsifier.apply(batches)"
        raise ConfigError(where="apply", given="no batches", wrong=f"{method.name} needs to see inputs", fix=fix)
    else:
        refuse_ranks(
            model,
            "apply",
            "each rank would calibrate with its own batches, and remove its own weights",
            "apply on one rank, or on all with the same batches, and wrap the model afterwards",
        )
        calibration.by_stages(model, batches, rows, method.needs, memory, functools.partial(_solve, method))
    sparsifier.finalize()
    return ending.summary(rows, {row.name: local(row.parameter) for row in rows}, before)


def _solve(method: Method, row: PlanRow, inputs: Inputs | None) -> None:
    weight = SparseWeight(row.name, row.parameter, row.grouping, {})
    with torch.autocast(row.parameter.device.type, enabled=False):  # a solver wants all the digits it has
        state = method.init(replace(weight.seen(), inputs=inputs))
    masks.clear_(local(row.parameter), state[masks.KEEP])


def _check_method(method: Method, rows: Sequence[PlanRow]) -> None:
    if method.at_once({row.grouping.pattern for row in rows}):
        return
    wrong = "it masks nothing" if method.holds == "nothing" else "it learns while a model trains"
    fix = "attach it to an optimizer, or use a method that gives each weight its pattern at once"
    raise ConfigError(where="apply", given=f"the method {method.name}", wrong=wrong, fix=fix)


def _check_weights(sparsifier: Any) -> None:
    """Refuse weights that cannot be written, or not by this sparsifier.

    Raises:
        AttachError: no weight, or weights that are sharded, have no values, that the model no longer has, or that a
            sparsifier is attached to.
    """
    for wrong, fix, rows in _reasons(sparsifier):
        if rows or not sparsifier.plan.sparse:
            where = rows[0].name if rows else "apply"
            raise AttachError(where=where, given=type(sparsifier.model).__name__, wrong=wrong, fix=fix)


def _reasons(sparsifier: Any) -> Iterator[tuple[str, str, list[PlanRow]]]:
    plan = sparsifier.plan
    yield "the plan has no sparse weight", "print(sparsifier.plan) for the reasons, and change the rules", []
    yield (
        "it is sharded or lies on the meta device, and a group may reach over shards",
        "apply to the whole model, then shard it",
        [row for row in plan.sparse if is_sharded(row.parameter) or row.parameter.is_meta],
    )
    yield (
        "the model has another parameter there now: it was wrapped or loaded after the sparsifier was made",
        "first load the model, then make the sparsifier",
        replaced(plan, sparsifier.model),
    )
    theirs = held_elsewhere({id(row.parameter) for row in plan.sparse})
    yield (
        "a sparsifier is attached to this weight",
        "finalize() or detach() that one first, or leave the weight to one of them with rules",
        [row for row in plan.sparse if id(row.parameter) in theirs],
    )
