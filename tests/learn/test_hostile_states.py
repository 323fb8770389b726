"""A state in which anything may stand is refused and has changed nothing, or it is loaded as it is."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import nmlearn as nm
import wrong_states
from nets import batches, convnet, same, sgd, snapshot, train
from nmlearn.errors import StateError
from nmlearn.learn import compact

STEPS = 8
METHODS = {
    "lbc": nm.LBC("2:4"),
    "explicit": nm.LBC("2:4", scores="explicit"),
    "srste": nm.SRSTE("2:4"),
    "maxq": nm.MaxQ("2:4"),
    "bimask": nm.BiMask("2:4"),
    "maskllm": nm.MaskLLM("2:4"),
}


def attached(method: nm.Method, steps: int) -> nm.Sparsifier:
    model = convnet()
    optimizer = sgd(model)
    sparsifier = nm.Sparsifier(model, method).attach(optimizer, STEPS)
    train(model, optimizer, batches(steps))
    return sparsifier


@pytest.fixture(scope="module", params=METHODS)
def pair(request: pytest.FixtureRequest) -> tuple[nm.Sparsifier, dict[str, Any]]:
    """A sparsifier in the middle of its training, and a state that it can load."""
    method = METHODS[request.param]
    return attached(method, 2), copy.deepcopy(attached(method, 3).state_dict())


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_one_change_of_a_state_is_refused_or_loaded(
    pair: tuple[nm.Sparsifier, dict[str, Any]], data: st.DataObject
) -> None:
    sparsifier, sound = pair
    try_it(sparsifier, wrong_states.with_one_change(sound, data))


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)
keys = st.sampled_from(["format", "method", "options", "total_steps", "step", "advances", "weights"])
nested = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner), max_leaves=10)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(nested)
@example({"format": 1, "method": "lbc", "options": {}, "total_steps": 8, "step": 0, "advances": 0, "weights": []})
@example(torch.zeros(3))
def test_any_garbage_is_refused(pair: tuple[nm.Sparsifier, dict[str, Any]], garbage: Any) -> None:
    sparsifier, sound = pair
    try_it(sparsifier, garbage)
    try_it(sparsifier, sound | garbage if isinstance(garbage, dict) else {"weights": garbage})


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_one_change_of_a_state_for_files(pair: tuple[nm.Sparsifier, dict[str, Any]], data: st.DataObject) -> None:
    sparsifier, sound = pair
    try_it(sparsifier, wrong_states.with_one_change(compact.packed(sound), data))


def try_it(sparsifier: nm.Sparsifier, state: Any) -> None:
    before = copy.deepcopy(sparsifier.state_dict()), snapshot(sparsifier.model)
    try:
        sparsifier.load_state_dict(state)
    except StateError as error:
        assert "\n" not in str(error) and len(str(error)) < 500
        after = sparsifier.state_dict(), snapshot(sparsifier.model)
        assert same(list(before), list(after))
    else:
        after = sparsifier.state_dict()
        state = compact.unpacked(state)
        assert same_bits(after, {key: state[key] for key in after})
        sparsifier.load_state_dict(before[0])
        sparsifier.model.load_state_dict(before[1])


def same_bits(a: Any, b: Any) -> bool:
    """Equal but for what is left out: a schedule that has ended keeps its mask alone. NaN equals NaN."""
    if isinstance(a, dict):
        return set(a) <= set(b) and all(same_bits(a[key], b[key]) for key in a)
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0))
    return bool(a == b) or (isinstance(a, float) and a != a and b != b)


def test_a_mask_that_would_change_the_bits_of_weights_is_refused() -> None:
    sparsifier = attached(METHODS["lbc"], 3)
    state = copy.deepcopy(sparsifier.state_dict())
    state["weights"]["conv.weight"]["state"]["keep"][0, 0, 0, 0] = 0x55
    with pytest.raises(StateError, match=r"conv.weight keep: given other values"):
        sparsifier.load_state_dict(state)
