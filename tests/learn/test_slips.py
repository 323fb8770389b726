"""Slips of the hand: what is refused, what is warned of, and what the messages say."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

import nmlearn as nm
from nets import batches, convnet, sgd, train
from nmlearn.errors import AttachError, ConfigError, StateError, ViolationError

STEPS = 8


def attached(total: Any = STEPS) -> tuple[Any, Any, nm.Sparsifier]:
    model = convnet()
    optimizer = sgd(model)
    return model, optimizer, nm.Sparsifier(model, nm.LBC("2:4")).attach(optimizer, total)


@pytest.mark.parametrize(
    ("method", "write"),
    [("2:4", 'nm.LBC("2:4")'), (nm.Pattern("1:4"), 'nm.LBC("1:4")'), (nm.SRSTE, 'SRSTE("2:4")'), (None, "nm.LBC")],
)
def test_what_is_no_method_is_refused_with_what_to_write(method: Any, write: str) -> None:
    with pytest.raises(ConfigError) as caught:
        nm.Sparsifier(convnet(), method)
    assert write in caught.value.fix and caught.value.where == "Sparsifier(method=...)"


@pytest.mark.parametrize("total", [math.nan, math.inf, -math.inf, 0, -3, 0.5, 10.5, True, "10", None])
def test_the_number_of_steps_is_whole_and_at_least_one(total: Any) -> None:
    with pytest.raises(AttachError, match=f"total_steps={total!r}"):
        attached(total)


@pytest.mark.parametrize("total", [8.0, Fraction(8), np.int64(8)])
def test_numbers_that_equal_a_whole_one_are_taken_as_it(total: Any) -> None:
    _, _, sparsifier = attached(total)
    assert sparsifier.total_steps == 8 and type(sparsifier.total_steps) is int


def test_swapped_arguments_are_said_to_be_so() -> None:
    model = convnet()
    with pytest.raises(AttachError, match=r"other way round; write attach\(optimizer, total_steps\)"):
        nm.Sparsifier(model, nm.LBC("2:4")).attach(STEPS, sgd(model))  # type: ignore[arg-type]


@pytest.mark.parametrize("optimizer", [None, "sgd", torch.optim.SGD])
def test_what_is_no_optimizer_is_refused(optimizer: Any) -> None:
    with pytest.raises(AttachError, match="it is no torch optimizer"):
        nm.Sparsifier(convnet(), nm.LBC("2:4")).attach(optimizer, STEPS)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
@pytest.mark.parametrize("steps", [0, 2])
def test_copies_of_an_attached_sparsifier_are_refused(copied: Callable[[Any], Any], steps: int) -> None:
    model, optimizer, sparsifier = attached()
    train(model, optimizer, batches(steps))
    with pytest.raises(StateError, match="belongs to one model and one optimizer; save its state_dict"):
        copied(sparsifier)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_before_attach_a_copy_has_its_own_model(copied: Callable[[Any], Any]) -> None:
    """Launchers pickle callbacks, and with them a sparsifier that only has its plan."""
    twin = copied(nm.Sparsifier(model := convnet(), nm.LBC("2:4")))
    assert twin.model is not model
    optimizer = sgd(twin.model)
    twin.attach(optimizer, STEPS)
    train(twin.model, optimizer, batches(STEPS))
    assert twin.finalize().density == 0.5


def test_a_sparsifier_says_where_it_stands() -> None:
    model, optimizer, sparsifier = attached()
    train(model, optimizer, batches(3))
    assert repr(sparsifier) == "Sparsifier(lbc 2:4, 3 sparse weights, step 3 of 8)"
    assert repr(nm.Sparsifier(model, nm.SRSTE("1:4"))) == "Sparsifier(srste 1:4, 3 sparse weights, not attached)"
    train(model, optimizer, batches(5))
    sparsifier.finalize()
    assert repr(sparsifier) == "Sparsifier(lbc 2:4, 3 sparse weights, finalized)"


def test_finalize_sums_up() -> None:
    model, optimizer, sparsifier = attached()
    train(model, optimizer, batches(STEPS))
    summary = sparsifier.finalize()
    assert sparsifier.progress == 1.0 and sparsifier.step == 0
    values = [model.get_parameter(row.name).numel() for row in sparsifier.plan.sparse]
    assert summary.weights == 3 and summary.density == 0.5 and summary.dense_bytes == 4 * sum(values)
    # Half of the values of four bytes, and log2(C(4, 2)), rounded up to 3 bits a group of four.
    assert summary.packed_bytes == sum(2 * n + -(-3 * n // 4 // 8) for n in values)
    first, second = str(summary).splitlines()
    assert first.startswith("3 weights verified: density 0.500") and "nm.save(model" in second


def test_the_summary_of_an_average_is_of_the_average() -> None:
    model, optimizer, sparsifier = attached()
    train(model, optimizer, batches(STEPS))
    average = copy.deepcopy(model)
    with torch.no_grad():
        average.hidden.weight.fill_(1.0)
        average.conv.weight.zero_()
    summary = sparsifier.finalize(average)
    assert summary.weights == 3 and 0 < summary.density < 0.5 and sparsifier.step == STEPS
    model = convnet()
    dense = nm.Sparsifier(model, nm.METHODS["dense"]("2:4")).attach(sgd(model), STEPS).finalize()
    assert dense.weights == 0 and dense.dense_bytes == dense.packed_bytes == 0 and len(str(dense).splitlines()) == 2


def test_finalize_without_attach_asks_for_it() -> None:
    model = convnet()
    sparsifier, optimizer = nm.Sparsifier(model, nm.LBC("2:4")), sgd(model)
    train(model, optimizer, batches(2))
    with pytest.raises(ViolationError, match=r"no optimizer step was seen; was attach called on this optimizer\?"):
        sparsifier.finalize()
    sparsifier.attach(sgd(model), STEPS)
    train(model, optimizer, batches(2))
    with pytest.raises(ViolationError, match=r"no optimizer step was seen; was attach called on this optimizer\?"):
        sparsifier.finalize()


def test_finalize_in_the_middle_names_the_step_and_likely_causes() -> None:
    model, optimizer, sparsifier = attached(20)
    train(model, optimizer, batches(5))
    with pytest.raises(
        ViolationError,
        match=r"step 5 of total_steps=20 .*resumed.* 4 times the steps.*complete=True",
    ):
        sparsifier.finalize()


def test_a_weight_written_to_after_the_end_is_no_matter_of_steps() -> None:
    model, optimizer, sparsifier = attached()
    train(model, optimizer, batches(STEPS))
    torch.nn.init.ones_(model.hidden.weight)
    with pytest.raises(ViolationError, match="let nothing but the optimizer write into these weights"):
        sparsifier.finalize()


def test_steps_far_beyond_the_last_are_warned_of_once() -> None:
    model, optimizer, sparsifier = attached()
    train(model, optimizer, batches(STEPS))
    with pytest.warns(UserWarning, match="beyond total_steps=8") as caught:
        train(model, optimizer, batches(STEPS))
    assert len(caught) == 1 and caught[0].filename.endswith("nets.py")
    sparsifier.finalize()
