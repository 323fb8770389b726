"""The numbers under a comparison's table."""

from __future__ import annotations

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nmlearn.lab.train.statistics import interval, t_probability, t_quantile, table


@pytest.mark.parametrize(
    ("freedom", "expected"),  # two-sided 95 %, from printed tables of Student's distribution
    [
        (1, 12.7062),
        (2, 4.3027),
        (3, 3.1824),
        (4, 2.7764),
        (5, 2.5706),
        (9, 2.2622),
        (10, 2.2281),
        (29, 2.0452),
        (120, 1.9799),
    ],
)
def test_known_quantiles(freedom: int, expected: float) -> None:
    assert t_quantile(0.95, freedom) == pytest.approx(expected, abs=5e-5)


def test_closed_forms() -> None:
    assert t_quantile(0.99, 1) == pytest.approx(math.tan(math.pi * 0.99 / 2), rel=1e-10)
    p = 0.9  # two degrees of freedom: t = p sqrt(2 / (1 - p^2))
    assert t_quantile(p, 2) == pytest.approx(p * math.sqrt(2 / (1 - p * p)), rel=1e-10)


@given(st.integers(1, 200), st.floats(0.01, 0.999))
def test_quantile_and_probability_are_inverse(freedom: int, level: float) -> None:
    assert t_probability(t_quantile(level, freedom), freedom) == pytest.approx(level, rel=1e-9)


@given(st.integers(1, 100), st.floats(0.1, 5))
def test_more_freedom_means_lighter_tails(freedom: int, t: float) -> None:
    assert t_probability(t, freedom) <= t_probability(t, freedom + 1) + 1e-12


def test_interval() -> None:
    mean, low, high = interval([1.0, 2.0, 3.0])
    half = 4.3027 / math.sqrt(3)
    assert (mean, low, high) == pytest.approx((2.0, 2 - half, 2 + half), abs=1e-4)
    assert interval([1.5]) == (1.5, None, None)


def run(method: str, pattern: str | None, seed: int, accuracy: float | None, seconds: float = 1.0) -> dict[str, object]:
    return {
        "method": method, "pattern": pattern, "seed": seed, "accuracy": accuracy, "loss": 1.0 + seed,
        "seconds": seconds, "state_bytes_per_weight": 10.0, "training_flops_ratio": 0.5, "density": 0.5,
    }  # fmt: skip


def test_gaps_are_paired() -> None:
    runs = [run("dense", None, seed, 0.9 + 0.01 * seed) for seed in range(3)]
    runs += [run("lbc", "2:4", seed, 0.89 + 0.01 * seed + 0.001 * (seed == 1), seconds=seed) for seed in range(3)]
    runs += [run("lbc", "2:4", 7, 0.5, seconds=9)]  # a seed without a dense run: counts for the mean, not for the gap
    dense, lbc = table(runs)
    assert (dense["method"], dense["pattern"], dense["seeds"], dense["gap_mean"]) == ("dense", None, 3, None)
    gaps = [-0.01, -0.009, -0.01]
    assert lbc["gap_mean"] == pytest.approx(statistics.fmean(gaps))
    assert lbc["gap_high"] - lbc["gap_mean"] == pytest.approx(4.3027 * statistics.stdev(gaps) / math.sqrt(3), rel=1e-4)
    assert (lbc["seeds"], lbc["seconds_median"]) == (4, 1.5)
    assert lbc["loss_gap_mean"] == 0


def test_what_is_not_known_is_none() -> None:
    (row,) = table([run("lbc", "2:4", 0, 0.5)])
    assert row["accuracy_std"] is row["gap_mean"] is row["gap_low"] is None
    (_, language) = table([run("dense", None, 0, None), run("lbc", "2:4", 0, None)])
    assert language["accuracy_mean"] is language["gap_mean"] is None
    assert language["loss_gap_mean"] == 0
