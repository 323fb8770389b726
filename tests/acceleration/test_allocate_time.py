"""nm.allocate by time: with times that are told, what it chooses is known; and once with real ones."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import nmlearn as nm
from nmlearn.acceleration import candidates, whole
from nmlearn.acceleration.timing import Timing
from nmlearn.errors import ConfigError, KernelError
from nmlearn.native import library as native

pytestmark = pytest.mark.skipif(not native.isa(), reason="the CPU kernels are not built")

PATTERNS = ("2:4", "1:4", "1:8")
MS = 1e-3
Clock = Callable[..., Timing]


class Net(nn.Module):
    """Three linear layers of different sizes in the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.deep, self.small = nn.Linear(32, 64), nn.Linear(64, 32), nn.Linear(32, 32)
        self.head = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.small(F.relu(self.deep(F.relu(self.wide(x)))))))


X = torch.randn(8, 32, generator=torch.Generator().manual_seed(0))
# Milliseconds of each layer dense and by pattern; the whole model takes ten in all.
TOLD = {
    "wide": {None: 4.0, "2:4": 3.0, "1:4": 1.5, "1:8": 1.0},
    "deep": {None: 3.0, "2:4": 2.92, "1:4": 2.95, "1:8": 0.5},  # 2:4 and 1:4 are no gain: within 3 % of dense
    "small": {None: 1.0, "2:4": 2.0, "1:4": 2.0, "1:8": 2.0},  # no kernel is faster
}
WHOLE = 10.0
DENSE = ("eager", "eager channels_last", "prepacked")


def net() -> Net:
    torch.manual_seed(0)
    return Net()


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A clock with these times; what it was asked for."""
    shapes = {(64, 32): "wide", (32, 64): "deep", (32, 32): "small"}
    asked: list[str] = []
    real = candidates.cpu_candidates.calls

    def calls(layer: nn.Linear, pattern: nm.Pattern, *rest: Any) -> dict[str, Callable[[], object]]:
        asked.append(f"{shapes[tuple(layer.weight.shape)]} {pattern}")
        return real(layer, pattern, *rest)

    def times(given: dict[str, Callable[[], object]], **_: Any) -> Timing:
        layer, pattern = asked[-1].split()
        dense, sparse = TOLD[layer][None] * MS, TOLD[layer][pattern] * MS
        return Timing({name: dense if name in DENSE else sparse for name in given}, 0.1)

    monkeypatch.setattr(candidates.cpu_candidates, "calls", calls)
    monkeypatch.setattr(candidates, "interleaved", times)
    monkeypatch.setattr(whole, "interleaved", lambda given, **_: Timing(dict.fromkeys(given, WHOLE * MS)))
    return asked


def milliseconds(chosen: dict[str, str | None]) -> float:
    """What a choice takes: two of the ten milliseconds are not those of the layers."""
    times = 0.0
    for layer, pattern in chosen.items():
        dense = TOLD[layer][None]
        times += TOLD[layer][pattern] if TOLD[layer][pattern] <= 0.97 * dense else dense
    return WHOLE - sum(table[None] for table in TOLD.values()) + times


@pytest.mark.parametrize("speedup", [1.05, 1.3, 1.8, 2.1])
def test_no_other_choice_that_is_as_fast_loses_less(told: list[str], speedup: float) -> None:
    model = net()
    found = nm.allocate(model, X, budget={"speedup": speedup}, patterns=PATTERNS, cache=None)
    losses = {row.name.removesuffix(".weight"): {str(p): loss for p, loss in row.losses.items()} for row in found.rows}
    best = math.inf
    for choice in itertools.product((None, *PATTERNS), repeat=3):
        chosen = dict(zip(TOLD, choice, strict=True))
        if WHOLE / milliseconds(chosen) >= speedup:
            best = min(best, sum(losses[layer][p] for layer, p in chosen.items() if p))
    picked = {layer: (p := found[f"{layer}.weight"]) and str(p) for layer in TOLD}
    assert found.reached == pytest.approx(WHOLE / milliseconds(picked)) and found.reached >= speedup
    assert found.loss == pytest.approx(best)
    assert picked["small"] is None and picked["deep"] in (None, "1:8")
    assert sorted(told) == sorted(f"{layer} {p}" for layer in TOLD for p in PATTERNS)  # each once


def test_the_table_shows_times(told: list[str]) -> None:
    found = nm.allocate(net(), X, budget={"speedup": 2.0}, patterns=PATTERNS, cache=None)
    rows = {row.name: row for row in found.rows}
    assert found.whole_ms == pytest.approx(WHOLE)
    assert list(rows["wide.weight"].costs.values()) == pytest.approx([4, 3, 1.5, 1])
    assert rows["deep.weight"].costs[nm.Pattern("2:4")] == pytest.approx(3.0)
    lines = str(found).splitlines()
    assert lines[0].split()[3:7] == ["ms", "loss", "dense", "2:4"]
    assert lines[1].startswith("wide.weight") and " 4.000 " in lines[1] and "(1.500)" in lines[1]
    assert "no kernel is faster than dense" in lines[3] and "output layer: dense by default" in lines[4]
    assert (
        "x as fast (asked for: 2.00 x as fast, of 10 ms dense)" in lines[5]
        and "1:4 wherever it fits: 1.33 x as fast" in lines[7]
    )
    assert lines[4].split()[2:4] == ["dense", "output"]  # no time was measured: there was no choice


def test_a_speedup_out_of_reach_names_the_best_one(told: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"these patterns come to 2\.222 at best; no kernel is faster than dense"):
        nm.allocate(net(), X, budget={"speedup": 3.0}, patterns=PATTERNS, cache=None)
    found = nm.allocate(net(), X, budget={"speedup": 2.222}, patterns=PATTERNS, cache=None)
    assert [str(p) for p in found.values()] == ["1:8", "1:8", "None"]


def test_rules_with_patterns_take_their_time(told: list[str]) -> None:
    rules = {"wide": "1:4", "deep": None}
    with pytest.raises(ConfigError, match="every weight that is chosen left dense"):
        nm.allocate(net(), X, budget={"speedup": 1.3}, patterns=PATTERNS, rules=rules, cache=None)
    with pytest.raises(ConfigError, match=r"come to 1\.333 at best"):
        nm.allocate(net(), X, budget={"speedup": 1.5}, patterns=PATTERNS, rules=rules, cache=None)


def test_a_model_that_takes_less_time_than_its_layers_is_not_faster_than_they_are(
    told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Times of the whole below those of its parts are noise: what is left for the rest is nothing, and never less."""
    monkeypatch.setattr(whole, "interleaved", lambda given, **_: Timing(dict.fromkeys(given, 5 * MS)))
    with pytest.raises(ConfigError, match=r"come to 2 at best"):  # 5 over 1 + 0.5 + 1
        nm.allocate(net(), X, budget={"speedup": 3.0}, patterns=PATTERNS, cache=None)


def test_noisy_times_are_marked_and_not_kept(told: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    quiet = candidates.interleaved
    noisy: Clock = lambda given, **how: Timing(quiet(given, **how).seconds, 0.9, "half of the rounds ...")  # noqa: E731
    monkeypatch.setattr(candidates, "interleaved", noisy)
    cache = tmp_path / "times.json"
    found = nm.allocate(net(), X, budget={"speedup": 1.5}, patterns=PATTERNS, cache=cache)
    assert not cache.exists()
    assert [row.reason for row in found.rows[:3]] == ["noisy times: half of the rounds ..."] * 3
    monkeypatch.setattr(candidates, "interleaved", quiet)
    nm.allocate(net(), X, budget={"speedup": 1.5}, patterns=PATTERNS, cache=cache)
    assert len(json.loads(cache.read_text())["times"]) == 9
    monkeypatch.setattr(candidates, "interleaved", lambda *_, **__: pytest.fail("measured again"))
    nm.allocate(net(), X, budget={"speedup": 1.5}, patterns=PATTERNS, cache=cache)


@pytest.mark.parametrize("fast", ["contiguous", "channels_last"])
def test_convolutions_are_timed_in_both_memory_formats(monkeypatch: pytest.MonkeyPatch, fast: str) -> None:
    """The format in which the budget loses least is taken; the model keeps its own."""
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3), nn.Conv2d(16, 16, 3), nn.Conv2d(16, 4, 3))
    x, sparse = torch.randn(1, 3, 12, 12), ("tokens of planes",) if fast == "contiguous" else ("rows", "tokens")
    times = dict.fromkeys(DENSE, 4 * MS) | dict.fromkeys(("rows", "tokens", "tokens of planes"), 3 * MS)
    times |= dict.fromkeys(sparse, MS)
    monkeypatch.setattr(candidates, "interleaved", lambda given, **_: Timing({name: times[name] for name in given}))
    monkeypatch.setattr(whole, "interleaved", lambda given, **_: Timing(dict.fromkeys(given, WHOLE * MS)))
    found = nm.allocate(model, x, budget={"speedup": 1.4}, patterns=["2:4"], rules={"3": None}, cache=None)
    assert sorted(map(str, list(found.values())[1:])) == ["2:4", "None"]  # one of the two: 10 / 7; else both: 10 / 8
    assert found.reached == pytest.approx(10 / 7)
    assert all(layer.weight.is_contiguous() for layer in model)


def test_layers_that_nm_accelerate_does_not_replace_gain_nothing(told: list[str]) -> None:
    class Named(nn.Linear):
        pass

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide, self.named, self.unused = nn.Linear(32, 64), Named(64, 32), nn.Linear(64, 32)
            self.head = nn.Linear(32, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.named(self.wide(x)))

    found = nm.allocate(Model(), X, budget={"speedup": 1.2}, patterns=PATTERNS, cache=None)
    reasons = {row.name: row.reason for row in found.rows}
    assert reasons["named.weight"] == "only Linear and Conv2d become faster"
    assert reasons["unused.weight"] == "the example did not call it"
    assert found["named.weight"] is None and found["unused.weight"] is None and found["wide.weight"] is not None
    with pytest.raises(KernelError, match="allocate: example"):
        nm.allocate(Model(), torch.zeros(2, 2), budget={"speedup": 1.2}, cache=None)


def test_the_model_keeps_mode_and_weights(told: list[str]) -> None:
    model = net().train()
    model.wide.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    nm.allocate(model, X, budget={"speedup": 1.5}, patterns=PATTERNS, cache=None)
    assert [m.training for m in model.modules()] == [True, False, True, True, True]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(type(p) is nn.Parameter and not p.is_inference() for p in model.parameters())


def test_what_was_allocated_is_as_fast_in_accelerate(tmp_path: Path) -> None:
    """With real times: nm.accelerate takes the same ones from the cache, and packs the layers that were to become
    faster. The time of the whole model is not compared: other work on the machine decides it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 8))
    x, cache = torch.randn(64, 512), tmp_path / "times.json"
    try:
        found = nm.allocate(model, x, budget={"speedup": 1.2}, patterns=["1:8", "1:16"], cache=cache)
    except ConfigError as error:  # on a machine whose kernels gain nothing, or too busy to say
        assert "at best" in error.wrong
        return
    assert found.reached >= 1.2
    noisy = any("noisy" in row.reason for row in found.rows)
    nm.Sparsifier(model, nm.OneShot("1:8"), rules=found).apply()
    expected = model.eval()(x)
    report = nm.accelerate(model, x, cache=cache)
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)
    tried = {row.name for row in report.rows if row.chosen or row.why == "the model as a whole was not faster"}
    assert noisy or tried == {name.removesuffix(".weight") for name, pattern in found.items() if pattern}
