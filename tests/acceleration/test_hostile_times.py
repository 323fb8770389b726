"""The file of measured times may hold anything: what is no time is measured again, and the model computes the same."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, reject, settings
from hypothesis import strategies as st
from torch import nn

import nmlearn as nm
import wrong_states
from accelerated import sparse_is_fast  # noqa: F401  (a fixture)
from nmlearn.acceleration import candidates
from nmlearn.acceleration.measured import Times
from nmlearn.acceleration.timing import SPREAD, Timing
from nmlearn.lab.bench.weights import sparse_
from nmlearn.native import library as native

pytestmark = pytest.mark.skipif(not native.isa(), reason="the CPU kernels are not built")
numbers = st.floats() | st.integers() | st.sampled_from([5e-324, 1e308, True, None, "1", 10**400])
names = st.sampled_from(["eager", "prepacked", "rows", "tokens", "eager channels_last", "nonsense", ""])
tables = st.dictionaries(names, numbers, max_size=4)


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16)).eval()
    for layer in (made[0], made[2]):
        sparse_(layer.weight, "2:4")
    return made


@pytest.fixture
def cache(tmp_path: Path, model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(candidates, "interleaved", lambda calls, **_: Timing(dict.fromkeys(calls, 1e-3), 0.25))
    nm.accelerate(copy.deepcopy(model), torch.randn(4, 16), cache=tmp_path / "times.json")
    return tmp_path / "times.json"


def check(model: nn.Module, cache: Path, text: bytes) -> None:
    """Whatever the file holds, the model computes the same, and the file is whole afterwards."""
    sound, x = cache.read_bytes(), torch.randn(4, 16)
    cache.write_bytes(text)
    try:
        times = Times(cache)
        for timing in times.known.values():
            assert 0 <= timing.spread <= SPREAD and all(0 < t < math.inf for t in timing.seconds.values())
        accelerated = copy.deepcopy(model)
        nm.accelerate(accelerated, x, cache=cache)
        torch.testing.assert_close(accelerated(x), model(x))
        known = json.loads(cache.read_bytes())
        assert all(known["times"][what].keys() >= {"eager"} for what in json.loads(sound)["times"])
    finally:
        cache.write_bytes(sound)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_one_change(model: nn.Module, cache: Path, data: st.DataObject) -> None:
    changed = wrong_states.with_one_change(json.loads(cache.read_bytes()), data)
    try:
        text = json.dumps(changed, default=str)
    except ValueError:  # a number that is too long for JSON's own writer
        reject()
    check(model, cache, text.encode())


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tables, numbers)
@example({"eager": 1.0, "nonsense": 1e-9}, 0.1)
def test_any_times_of_what_is_asked_for(model: nn.Module, cache: Path, table: dict[str, Any], spread: Any) -> None:
    known = json.loads(cache.read_bytes())
    known |= {"times": dict.fromkeys(known["times"], table), "spread": dict.fromkeys(known["times"], spread)}
    check(model, cache, json.dumps(known).encode())


@given(octets=st.binary(max_size=20))
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes(model: nn.Module, cache: Path, octets: bytes) -> None:
    check(model, cache, octets)
