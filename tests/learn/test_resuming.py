"""A schedule never begins a second time in silence, and its length may come from who knows it."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest

import nmlearn as nm
from nets import batches, convnet, sgd, train
from nmlearn.errors import AttachError, StateError
from nmlearn.learn import compact, lengths

STEPS = 12


def test_a_state_of_other_rules_is_refused_in_both_orders() -> None:
    model = convnet()
    optimizer = sgd(model)
    nm.Sparsifier(model, nm.LBC("2:4")).attach(optimizer, STEPS)
    train(model, optimizer, batches(3))
    saved = optimizer.state_dict()
    for load_first in (True, False):
        other = convnet()
        again = sgd(other)
        learner = nm.Sparsifier(other, nm.LBC("2:4"), {"conv": None})
        if load_first:
            again.load_state_dict(copy.deepcopy(saved))
            with pytest.raises(StateError, match="it is dense under this sparsifier"):
                learner.attach(again, STEPS)
        else:
            learner.attach(again, STEPS)
            with pytest.raises(StateError, match="it is dense under this sparsifier"):
                again.load_state_dict(copy.deepcopy(saved))


def test_an_optimizer_that_has_stepped_is_refused_unless_said() -> None:
    model = convnet()
    optimizer = sgd(model)
    train(model, optimizer, batches(2))
    with pytest.raises(AttachError, match="which has stepped without a sparsifier"):
        nm.Sparsifier(model, nm.LBC("2:4")).attach(optimizer, STEPS)
    with pytest.raises(AttachError, match="no such choice"):
        nm.Sparsifier(model, nm.LBC("2:4")).attach(optimizer, STEPS, resume="again")  # type: ignore[arg-type]
    sparsifier = nm.Sparsifier(model, nm.LBC("2:4")).attach(optimizer, STEPS, resume="anew")
    train(model, optimizer, batches(STEPS))
    assert sparsifier.finalize().weights == 3


@pytest.mark.parametrize("comes", [True, False])
def test_a_load_without_the_state_is_refused_at_the_next_step_unless_it_comes(comes: bool) -> None:
    model = convnet()
    optimizer = sgd(model)
    train(model, optimizer, batches(2))
    saved = copy.deepcopy(optimizer.state_dict())
    other = convnet()
    again = sgd(other)
    sparsifier = nm.Sparsifier(other, nm.LBC("2:4")).attach(again, STEPS)
    state = sparsifier.state_dict(compact=True)
    again.load_state_dict(saved)
    if comes:
        sparsifier.load_state_dict(state)
        train(other, again, batches(1))
        assert sparsifier.step == 1
        return
    with pytest.raises(AttachError, match="loaded with the state of earlier steps"):
        train(other, again, batches(1))


def test_masks_are_packed_to_bits_and_back() -> None:
    model = convnet()
    optimizer = sgd(model)
    sparsifier = nm.Sparsifier(model, nm.LBC("2:4")).attach(optimizer, STEPS)
    train(model, optimizer, batches(4))
    plain, small = sparsifier.state_dict(), sparsifier.state_dict(compact=True)
    back = compact.unpacked(small)
    for name, entry in plain["weights"].items():
        for key, tensor in entry["state"].items():
            assert back["weights"][name]["state"][key].equal(tensor), (name, key)
        keep = small["weights"][name]["state"]["keep"]
        assert keep["bits"].numel() == -(-entry["state"]["keep"].numel() // 8)


@pytest.mark.parametrize(
    ("given", "steps"),
    [
        (7, 7),
        (7.0, 7),
        (lambda: 7, 7),
        (SimpleNamespace(estimated_stepping_batches=7), 7),
        (SimpleNamespace(max_steps=7), 7),
    ],
)
def test_lengths(given: Any, steps: int) -> None:
    assert lengths.steps(given) == steps


@pytest.mark.parametrize("given", [SimpleNamespace(max_steps=-1), lambda: None, "7", float("nan"), float("inf"), True])
def test_lengths_that_are_none(given: Any) -> None:
    with pytest.raises(AttachError, match="whole number, of at least one"):
        lengths.steps(given)
