"""Comparisons: parallel, paired, resumable."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import nmlearn.lab.report
import toy
from nmlearn.errors import ConfigError, NMLearnError, StateError
from nmlearn.lab.train import CompareConfig, DataConfig, ModelConfig, compare, recipe
from nmlearn.lab.train.compare import _Process, plan_runs, results_path
from nmlearn.lab.train.folder import RunFolder
from places import SUPPORT

WARNINGS = "error,ignore:the masks are final after:UserWarning"  # the runs have a few steps


@pytest.fixture(autouse=True)
def _toys(monkeypatch: pytest.MonkeyPatch) -> None:
    toy.register()
    monkeypatch.setenv("PYTHONWARNINGS", WARNINGS)


def never(path: Path) -> list[str]:
    raise AssertionError(path)


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


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """A comparison of three runs, made once, and its events."""
    toy.register()
    folder, events = tmp_path_factory.mktemp("compared"), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONWARNINGS", WARNINGS)
        compare(three(folder), events.append, toy.run_command)
    return folder, events


def three(folder: Path, **changes: Any) -> CompareConfig:
    plan = config(folder, seeds=(0,), **changes)
    return replace(plan, train=replace(plan.train, ema=0.9))


@pytest.fixture
def copied(compared: tuple[Path, list[dict[str, Any]]], tmp_path: Path) -> Path:
    """A separate folder with everything that the comparison wrote."""
    return shutil.copytree(compared[0], tmp_path, dirs_exist_ok=True)


def test_a_comparison_from_start_to_table(compared: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, events = compared
    plan = three(folder)
    results = json.loads(results_path(plan).read_text())
    assert json.loads((folder / "runs" / "results.json").read_text()) == results
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

    later: list[dict[str, Any]] = []
    assert compare(plan, later.append, never) == results  # finished: nothing is run
    assert [event["state"] for event in later] == ["kept"] * 3
    with pytest.raises(ConfigError, match=r"optim\.lr"):
        compare(replace(plan, train=replace(plan.train, optim=replace(plan.train.optim, lr=0.3))), None, never)


def test_a_failed_run_loses_nothing_and_is_tried_again(copied: Path) -> None:
    plan = three(copied, patterns=("2:4",), jobs=1)
    shutil.rmtree(copied / "runs" / "runs" / "lbc-2of4-s0")
    results_path(plan).unlink()

    def broken(path: Path) -> list[str]:
        fails = "lbc" in path.parent.name
        return [sys.executable, "-c", "import sys; sys.exit('out of luck')"] if fails else toy.run_command(path)

    results = compare(plan, None, broken)
    assert [run["method"] for run in results["runs"]] == ["dense"]
    assert json.loads((copied / "runs" / "results.json").read_text()) == results
    assert not results_path(plan).exists()
    assert results["failures"][0]["run"] == "lbc-2of4-s0"
    assert "out of luck (exit code 1" in results["failures"][0]["error"]
    again = compare(plan, None, toy.run_command)
    assert [run["method"] for run in again["runs"]] == ["dense", "lbc"]
    assert again["failures"] == []
    assert results_path(plan).exists()
    restarted = compare(replace(plan, train=replace(plan.train, resume="none")), None, broken)
    assert restarted["failures"] and [run["method"] for run in restarted["runs"]] == ["dense"]
    assert json.loads(results_path(plan).read_text()) == again  # what was whole stays


def test_every_run_says_where_it_was_made(copied: Path) -> None:
    plan = three(copied, methods=("lbc",))
    for name, commit, started in (("lbc-2of4-s0", "b", "2024-02-02"), ("lbc-1of4-s0", "a", "2023-03-03")):
        path = copied / "runs" / "runs" / name / "env.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"source_commit": commit, "started": started}))
    results = compare(plan, None, never)
    assert [(run["source_commit"], run["started"]) for run in results["runs"]] == [
        ("b", "2024-02-02"), ("a", "2023-03-03")
    ]  # fmt: skip
    assert results["source_commit"] == ["a", "b"]
    assert results["started"] == "2023-03-03"
    assert all(run["cpu"] and run["torch"] and run["ema_accuracy"] for run in results["runs"])
    assert "bits_per_byte" not in results["runs"][0]
    assert "a, b" in nmlearn.lab.report.write(copied / "runs").read_text()


@pytest.mark.skipif(sys.platform == "win32", reason="no signals of this kind on Windows")
@pytest.mark.slow
@pytest.mark.parametrize("deadly", [signal.SIGTERM, signal.SIGKILL])
def test_runs_end_with_the_comparison(tmp_path: Path, deadly: signal.Signals) -> None:
    plan = config(tmp_path, seeds=(0,), methods=("lbc",), patterns=("2:4",))
    plan = replace(plan, train=replace(plan.train, epochs=10_000))
    (tmp_path / "plan.yaml").write_text(recipe.dumps(plan))
    words = [sys.executable, str(SUPPORT / "toy.py"), "compare", str(tmp_path / "plan.yaml")]
    metrics = tmp_path / "runs" / "runs" / "lbc-2of4-s0" / "metrics.jsonl"
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait(lambda: metrics.exists() and metrics.stat().st_size > 0)
        process.send_signal(deadly)
        assert process.wait(60) == (130 if deadly == signal.SIGTERM else -deadly)
    finally:
        process.kill()
        process.wait()
    lock = RunFolder(metrics.parent)

    def free() -> bool:
        with contextlib.suppress(StateError), lock.locked():
            return True
        return False

    _wait(free)


def test_a_run_whose_comparison_is_killed_at_once_ends_too(tmp_path: Path) -> None:
    """Killed before the run's own interpreter has started, so that it never sees its parent."""
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe.dumps(toy.config(tmp_path / "run", epochs=10_000)))
    run = subprocess.Popen(toy.run_command(path), stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert run.stdin is not None
    run.stdin.close()
    assert run.wait(60) != 0
    assert not (tmp_path / "run" / "summary.json").exists()


def test_a_comparison_holds_the_pipe_that_ends_its_runs(tmp_path: Path) -> None:
    """A process that cannot know its parent: it says where it is, and ends when the comparison lets go."""
    waits = "import os, sys; open(sys.argv[1] + '.up', 'w').close(); sys.exit(os.read(0, 1) and 3 or 7)"
    run = next(plan_runs(config(tmp_path)))
    process = _Process(run, lambda path: [sys.executable, "-c", waits, str(path)])
    _wait(Path(f"{run.folder.path / 'recipe.yaml'}.up").exists)
    assert not process.ended()
    process._let_go()
    _wait(process.ended)
    assert "exit code 7" in str(process.error())


def _wait(until: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not until():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_what_nmlearn_refuses_is_refused_before_any_run(tmp_path: Path) -> None:
    plan = config(tmp_path, seeds=(0,), methods=("lbc",), patterns=("2:4",), options={"lbc": {"ends": 1}})
    with pytest.raises(ConfigError, match=r"did you mean 'end'\?"):
        compare(plan, None, never)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"methods": ("dense", "lbd"), "options": {}}, r"method\.name"),
        ({"options": {"lbc": {"end": "abc"}}}, r"method\.options\.end"),
        ({"options": {"lbc": {"end": 3.0}}}, "end"),
        ({"patterns": ("2:4", "3:5")}, "no weight of toy-conv would be sparse"),
    ],
)
def test_nothing_is_trained_before_all_is_checked(
    tmp_path: Path, changes: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(NMLearnError, match=said):
        compare(config(tmp_path, **changes), None, never)
    plan = config(tmp_path)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    for wrong in (
        {"tensorboard": True},
        {"data": DataConfig("toi")},
        {"model": ModelConfig("toy-cnv")},
        {"batch_size": 101},
    ):
        with pytest.raises(ConfigError):
            compare(replace(plan, train=replace(plan.train, **wrong)), None, never)  # type: ignore[arg-type]


def test_an_interrupted_comparison_stops_its_runs_and_goes_on(tmp_path: Path) -> None:
    plan = config(tmp_path, seeds=(0,), methods=("lbc",), patterns=("2:4",))

    def interrupt(event: dict[str, Any]) -> None:
        if event["event"] == "progress":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(plan, interrupt, toy.run_command)
    results = compare(plan, None, toy.run_command)
    assert [run["method"] for run in results["runs"]] == ["lbc"]
