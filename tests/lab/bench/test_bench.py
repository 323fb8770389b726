"""nmlearn bench: its rows, its summary, and the command."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

from nmlearn import cli
from nmlearn.acceleration.timing import Timing
from nmlearn.lab import bench
from nmlearn.lab.bench import layers, weights, whole
from nmlearn.maths.zeros import tightest
from nmlearn.native import library as native

needs_kernels = pytest.mark.skipif(not native.isa(), reason="the CPU kernels are not built")


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(layers, "LINEAR", ((32, 64), (16, 32)))
    monkeypatch.setattr(layers, "TOKENS", (3,))
    monkeypatch.setattr(layers, "DECODE", ((32, 64),))
    monkeypatch.setattr(layers, "OUT_OF_CACHE", 40_000)


@needs_kernels
@pytest.mark.parametrize(("suite", "count"), [("linear", 2), ("decode", 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_suites_of_layers(small, suite, count, dtype):
    with torch.inference_mode():
        rows = list(bench.SUITES[suite](("2:4", "1:16"), dtype, 0.0))
    assert len(rows) == count * 2
    for row in rows:
        assert 0 < row["best_ms"] <= row["eager_ms"] and 0 < row["sparse_ms"] == min(row["ways_ms"].values())
        assert row["kernel"] in ("rows", "tokens", "int8") and row["dtype"] == str(dtype)[6:]


@needs_kernels
@pytest.mark.slow
def test_the_convolutions_of_resnet50_are_52():
    with torch.inference_mode():
        rows = list(layers.convolutions(("1:16",), torch.float32, 0.0))
    assert sum(row["count"] for row in rows) == 52


@needs_kernels
@pytest.mark.slow
def test_whole_networks(monkeypatch):
    monkeypatch.setattr(whole, "NETWORKS", ("resnet50",))
    rows = list(whole.networks(("1:16",), torch.float32, 0.0))
    assert rows[0]["weights_over_dense"] < 0.12


def test_the_summary_is_a_geometric_mean_of_cases_and_a_ratio_of_sums_of_convolutions():
    def row(suite, best, sparse, **more):
        return {"suite": suite, "case": "c", "pattern": "2:4", "dtype": "float32", "eager_ms": 2 * best} | {
            "noise": "",
            "best_ms": best,
            "sparse_ms": sparse,
            **more,
        }

    rows = [row("linear", 2, 1), row("linear", 8, 1), row("conv", 3, 1, count=2), row("conv", 1, 1, count=4)]
    linear, conv = bench.summary([*rows])
    assert math.isclose(linear["over_best"], 4) and math.isclose(linear["over_eager"], 8) and linear["cases"] == 2
    assert math.isclose(conv["over_best"], 10 / 6)


@pytest.mark.parametrize("pattern", ["2:4", "1:8"])
def test_random_weights_have_their_pattern(pattern):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8, 16))
    weights.sparse_network_(model, pattern)
    assert [str(tightest(model[i].weight != 0, 1)) for i in (0, 2, 4)] == ["None", pattern, pattern]
    assert not model.training


@needs_kernels
def test_the_command_writes_its_rows_and_shows_a_table(small, tmp_path, capsys):
    out = tmp_path / "bench.json"
    assert cli.main(["bench", "linear", "--pattern", "1:4", "--seconds", "0", "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert len(found["rows"]) == 2 and found["summary"][0]["pattern"] == "1:4"
    assert found["environment"]["kernels"] == native.isa() and found["environment"]["threads"]
    text = capsys.readouterr().out
    assert "1:4" in text and "speed-up" in text


@needs_kernels
def test_noise_is_marked_and_limits_are_m_over_n(small, capsys, monkeypatch):
    limits = {}

    def told(calls, **how):
        limits.update(how["limits"])
        return Timing({name: 1.0 if ":" not in name else 0.01 for name in calls}, 0.9, "half of the rounds ...")

    monkeypatch.setattr(layers, "interleaved", told)
    assert cli.main(["bench", "linear", "decode", "--pattern", "1:4", "2:4", "--seconds", "0"]) == 0
    assert (limits["1:4 rows"], limits["2:4 tokens"], limits["1:4 int8"], limits["2:4 int8"]) == (4, 2, 16, 8)
    text = " ".join(capsys.readouterr().out.split())
    assert "NOISY: half of the rounds ..." in text and "100.00 (100.00) noisy" in text and "8 cases are noisy" in text


@pytest.mark.parametrize(
    "words",
    [
        ["nothing"],
        ["--pattern", "4:2"],
        ["--pattern", "1:3"],
        ["conv", "--pattern", "1:3"],
        ["decode", "--pattern", "2:5"],
    ],
)
def test_wrong_words_are_errors_before_anything_is_measured(words, capsys, monkeypatch):
    monkeypatch.setattr(layers, "interleaved", lambda *_, **__: pytest.fail("measured"))
    try:
        code = cli.main(["bench", *words])
    except SystemExit as stop:
        code = stop.code
    assert code == 2 and capsys.readouterr().out == ""


def test_every_pattern_that_is_measured_by_default_fits():
    bench.check(bench.SUITES, bench.PATTERNS)
