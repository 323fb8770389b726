"""Comparisons: parallel, paired, resumable."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import toy
from nmlearn.errors import ConfigError
from nmlearn.train import CompareConfig, compare, recipe
from nmlearn.train.compare import plan_runs, results_path


@pytest.fixture(autouse=True)
def _toys(monkeypatch: pytest.MonkeyPatch) -> None:
    toy.register()
    monkeypatch.setenv("PYTHONWARNINGS", "error")


def command(path: Path) -> list[str]:
    return [sys.executable, str(Path(__file__).with_name("toy.py")), str(path)]


def config(tmp_path: Path, **changes: Any) -> CompareConfig:
    base = CompareConfig(
        name="toys",
        train=replace(toy.config(Path("unused"), epochs=1, log_every=1), out=None),
        methods=("dense", "lbc"),
        patterns=("2:4", "1:4"),
        seeds=(0, 1),
        options={"lbc": {"end": 0.4}},
        out=str(tmp_path / "runs"),
        results=str(tmp_path / "results"),
    )
    return replace(base, **changes)


def test_dense_runs_once_a_seed_and_options_reach_their_method(tmp_path: Path) -> None:
    runs = list(plan_runs(config(tmp_path)))
    assert [run.name for run in runs] == [
        "dense-s0", "lbc-2of4-s0", "lbc-1of4-s0", "dense-s1", "lbc-2of4-s1", "lbc-1of4-s1"
    ]  # fmt: skip
    assert runs[0].config.method.options == {}
    assert runs[1].config.method.options == {"end": 0.4}
    assert len({run.config.folder for run in runs}) == 6
    assert {run.config.threads for run in runs} == {1}


def test_a_comparison_from_start_to_table(tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    plan = config(tmp_path, seeds=(0,))
    results = compare(plan, events.append, command)
    assert json.loads(results_path(plan).read_text()) == results
    assert json.loads((tmp_path / "runs" / "results.json").read_text()) == results
    assert recipe.build(CompareConfig, results["recipe"]) == plan
    assert [(run["method"], run["pattern"], run["seed"]) for run in results["runs"]] == [
        ("dense", None, 0), ("lbc", "2:4", 0), ("lbc", "1:4", 0)
    ]  # fmt: skip
    assert results["failures"] == []
    assert results["environment"]["threads"] == 1
    assert [(row["method"], row["seeds"]) for row in results["table"]] == [("dense", 1), ("lbc", 1), ("lbc", 1)]
    assert results["table"][1]["gap_mean"] == pytest.approx(
        results["runs"][1]["accuracy"] - results["runs"][0]["accuracy"]
    )
    states = [event["state"] for event in events if event["event"] == "run"]
    assert (states.count("started"), states.count("finished")) == (3, 3)
    assert any(event["event"] == "progress" and "total_steps" in event for event in events)

    def never(path: Path) -> list[str]:
        raise AssertionError(path)

    events.clear()
    again = compare(plan, events.append, never)  # finished: nothing is run
    assert again["runs"] == results["runs"]
    assert [event["state"] for event in events] == ["kept"] * 3
    with pytest.raises(ConfigError, match=r"optim\.lr"):
        compare(replace(plan, train=replace(plan.train, optim=replace(plan.train.optim, lr=0.3))), None, never)


def test_a_failed_run_loses_nothing_and_is_tried_again(tmp_path: Path) -> None:
    plan = config(tmp_path, seeds=(0,), patterns=("2:4",), jobs=1)

    def broken(path: Path) -> list[str]:
        fails = "lbc" in path.parent.name
        return [sys.executable, "-c", "import sys; sys.exit('out of luck')"] if fails else command(path)

    results = compare(plan, None, broken)
    assert [run["method"] for run in results["runs"]] == ["dense"]
    assert results["failures"][0]["run"] == "lbc-2of4-s0"
    assert "out of luck (exit code 1" in results["failures"][0]["error"]
    again = compare(plan, None, command)
    assert [run["method"] for run in again["runs"]] == ["dense", "lbc"]
    assert again["failures"] == []


def test_what_nmlearn_refuses_is_the_error_of_the_run(tmp_path: Path) -> None:
    plan = config(tmp_path, seeds=(0,), methods=("lbc",), patterns=("2:4",), options={"lbc": {"ends": 1}})
    (failure,) = compare(plan, None, command)["failures"]
    assert "did you mean end?" in failure["error"]


def test_an_interrupted_comparison_stops_its_runs_and_goes_on(tmp_path: Path) -> None:
    plan = config(tmp_path, seeds=(0,), methods=("lbc",), patterns=("2:4",))

    def interrupt(event: dict[str, Any]) -> None:
        if event["event"] == "progress":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(plan, interrupt, command)
    results = compare(plan, None, command)
    assert [run["method"] for run in results["runs"]] == ["lbc"]
