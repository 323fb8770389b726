"""A schedule that ``finalize(complete=True)`` ends early ends as one that was meant to end there, for every method."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim.swa_utils import AveragedModel

import nmlearn as nm
from calibrated import prepared
from nets import batches, convnet, same, sgd, snapshot, train
from nmlearn.errors import ViolationError

STEPS = 7
OPTIONS: dict[str, dict[str, Any]] = {"oneshot": {"at": 0.5}, "bimask": {"candidates": 4, "draws": 8}}
MORE = [
    nm.LBC("8:16"),
    nm.LBC("2:4", scores="explicit"),
    nm.LBC("2:4", scores="explicit", score_optimizer="adamw"),
    nm.LBC("2:4", elimination="weight", prior="magnitude"),
    nm.LBC("2:4", start=0.6, end=0.9),
    nm.MaxQ("1:4", end=0.9),
    nm.OneShot("2:4"),
]
BUILT = [nm.methods.build(name, "2:4", **OPTIONS.get(name, {})) for name in nm.METHODS]
methods = pytest.mark.parametrize("method", [*BUILT, *MORE], ids=lambda one: f"{one.name}-{one.pattern}")


def start(method: nm.Method, total: int, model: Any = None) -> tuple[Any, Any, nm.Sparsifier]:
    model = prepared(model or convnet(), method)
    optimizer = sgd(model)
    return model, optimizer, nm.Sparsifier(model, method).attach(optimizer, total)


def ends_at_the_last_step(method: nm.Method) -> tuple[Any, nm.Sparsifier]:
    """Trained as for 40 steps, but when step 7 is counted the schedule turns out to have 7."""
    model = prepared(convnet(), method)
    optimizer = sgd(model)
    sparsifier = nm.Sparsifier(model, method)

    def shorten(*_: Any) -> None:  # registered first, so that it runs between the learning and the counting
        if sparsifier.step == STEPS - 1:
            assert sparsifier._attached is not None
            sparsifier._attached.total_steps = STEPS

    optimizer.register_step_post_hook(shorten)
    sparsifier.attach(optimizer, 40)
    train(model, optimizer, batches(STEPS))
    assert sparsifier.progress == 1.0
    return model, sparsifier


@methods
def test_completing_equals_a_schedule_that_ends_there_bit_for_bit(method: nm.Method) -> None:
    expected, other = ends_at_the_last_step(method)
    masks = {name: mask.clone() for name, mask in other.masks().items()}
    model, optimizer, sparsifier = start(method, 40)
    train(model, optimizer, batches(STEPS))
    own = [model.get_parameter(row.name) for row in sparsifier.plan.sparse]
    before = sum(int(p.count_nonzero()) for p in own)
    size = sum(p.numel() for p in own)
    twin = copy.deepcopy(model)
    average = sparsifier.finalize(twin, complete=True)
    assert same(sparsifier.masks(), masks) and same(snapshot(model), snapshot(expected))
    summary = sparsifier.finalize(complete=True)
    assert same(snapshot(model), snapshot(expected)) and sparsifier.ended and not sparsifier.total_steps
    if method.holds == "nothing":
        assert summary.weights == 0 and summary.removed == 0
        return
    after = sum(int(p.count_nonzero()) for p in own)
    assert summary.removed == 0 and after / size == summary.density <= sparsifier.plan.sparse[0].pattern.density
    assert average.density_before == before / size and average.removed == before - int(average.density * size + 0.5)


@methods
def test_the_summary_says_what_completing_removed(method: nm.Method) -> None:
    model, optimizer, sparsifier = start(method, 40)
    train(model, optimizer, batches(STEPS))
    ended = sparsifier.ended
    summary = sparsifier.finalize(complete=True)
    assert (summary.removed == 0) == (ended or method.holds == "nothing")
    size = summary.dense_bytes // 4
    assert summary.removed == round((summary.density_before - summary.density) * size)
    if summary.removed:
        said = f"{summary.removed:,} values removed just now, density {summary.density_before:.3f} before"
        assert said in str(summary) and len(str(summary).splitlines()) == 2
    assert sparsifier.ended and sparsifier.state_bytes() == 0


def ones(model: Any) -> None:
    with torch.no_grad():
        model.hidden.weight.fill_(1.0)


def early(model: Any) -> None:
    model.load_state_dict(convnet(seed=1).state_dict())


def assigned(model: Any) -> None:
    model.load_state_dict(convnet(seed=1).state_dict(), assign=True)


@methods
@pytest.mark.parametrize("write", [ones, early, assigned])
def test_values_in_pruned_places_cost_no_training(method: nm.Method, write: Callable[[Any], None]) -> None:
    model, optimizer, sparsifier = start(method, STEPS)
    train(model, optimizer, batches(STEPS))
    masks = {name: mask.clone() for name, mask in sparsifier.masks().items()}
    write(model)
    if method.holds == "nothing":
        sparsifier.finalize()
        return
    with pytest.raises(ViolationError, match=r"finalize\(complete=True\) applies the final masks again"):
        sparsifier.finalize()
    summary = sparsifier.finalize(complete=True)
    assert summary.removed > 0 and summary.density <= method.pattern.density  # type: ignore[union-attr]
    if method.holds != "shadow":  # there the next mask follows from what was written, as at any step
        assert all(not bool(model.get_parameter(name)[~mask].any()) for name, mask in masks.items())


def test_what_was_not_trained_is_not_completed() -> None:
    _, _, sparsifier = start(nm.LBC("2:4"), 40)
    with pytest.raises(ViolationError, match="no optimizer step was seen"):
        sparsifier.finalize(complete=True)
    model, _, oneshot = start(nm.OneShot("2:4"), 40)
    ones(model)
    assert oneshot.finalize(complete=True).density == 0.5  # it waits for no step


def test_after_completing_with_an_average_the_state_is_one_of_a_schedule_that_has_ended() -> None:
    model, optimizer, sparsifier = start(nm.LBC("2:4"), 40)
    train(model, optimizer, batches(STEPS))
    sparsifier.finalize(AveragedModel(model), complete=True)
    saved = copy.deepcopy(sparsifier.state_dict())
    assert saved["total_steps"] == saved["step"] == STEPS and sparsifier.ended
    twin = copy.deepcopy(model)
    again = nm.Sparsifier(twin, nm.LBC("2:4")).attach(sgd(twin), STEPS)
    again.load_state_dict(saved)
    assert again.ended and same(again.masks(), sparsifier.masks())


@methods
def test_a_schedule_has_ended_when_nothing_is_removed_any_more(method: nm.Method) -> None:
    """From then on every model fits its pattern, and the masks of methods that fix them stay as they are."""
    model, optimizer, sparsifier = start(method, 16)
    assert not sparsifier.ended
    ends, kept = [], []

    def look(_: int) -> None:
        ends.append(sparsifier.ended)
        if not ends[-1]:
            return
        rows = sparsifier.plan.sparse if method.holds != "nothing" else ()
        assert not any(row.grouping.violation(model.get_parameter(row.name) != 0) for row in rows)
        kept.append({name: mask.clone() for name, mask in sparsifier.masks().items()})

    train(model, optimizer, batches(16), look)
    assert ends == sorted(ends) and ends[-1]
    if method.holds != "shadow":
        assert all(same(masks, kept[0]) for masks in kept)
    sparsifier.finalize()
    assert sparsifier.ended
