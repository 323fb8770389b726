"""experiments/pretrained.py with a fine-tuning that takes no time: order, resuming, sharing, what tables say."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest

import pretrained
import tables

LOSS = {"dense": 0.0, "oneshot": 0.2, "asp": 0.04, "srste": 0.03, "lbc": 0.02, "lbc-after": 0.01}


class Made:
    """Accuracies by formula; remembers what ran."""

    recipe: ClassVar = {"sizes": {"train": 1}}

    def __init__(self) -> None:
        self.ran: list[str] = []

    def run(self, arm: Any, folder: Path, dense: Path) -> dict[str, Any]:
        assert arm.from_dense == (arm.method in ("oneshot", "asp", "lbc-after"))
        assert not arm.from_dense or (dense / "result.json").exists()
        self.ran.append(arm.name)
        return {"accuracy": 0.9 + 0.002 * arm.seed - LOSS[arm.method], "loss": 0.5, "seconds": 1.0}


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Made:
    found = Made()
    module = ModuleType("pretrained_efficientnet")
    module.fine_tuning = lambda sizes, lbc, held_out: found  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pretrained_efficientnet", module)
    return found


def start(folder: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> dict[str, Any]:
    """The results file after a call of the command."""
    places = ["--out", str(folder / "runs"), "--results", str(folder)]
    monkeypatch.setattr(sys, "argv", ["pretrained.py", "efficientnet", *places, *words])
    pretrained.main()
    return json.loads((folder / "pretrained-efficientnet.json").read_text())


def test_seeds_are_paired_and_finished_arms_kept(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start(tmp_path, monkeypatch, "--seeds", "0", "--patterns", "2:4")
    assert made.ran == [
        "dense-s0",
        "oneshot-2of4-s0",
        "asp-2of4-s0",
        "srste-2of4-s0",
        "lbc-2of4-s0",
        "lbc-after-2of4-s0",
    ]
    found = start(tmp_path, monkeypatch, "--seeds", "0", "1", "--patterns", "2:4", "1:4")
    assert len(made.ran) == len(set(made.ran)) == 2 * (1 + 2 * 5)
    cells = {(row["method"], row["pattern"]): row for row in found["table"]}
    assert cells["lbc", "1:4"]["seeds"] == [0, 1] and cells["dense", None]["gap_mean"] is None
    assert cells["lbc", "2:4"]["gap_mean"] == pytest.approx(-0.02)
    assert cells["lbc", "2:4"]["gap_low"] == pytest.approx(-0.02, abs=1e-6)  # paired: seeds move both alike
    assert cells["lbc", "2:4"]["accuracy_low"] < 0.881 < cells["lbc", "2:4"]["accuracy_high"]


def test_two_processes_share_the_work(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waiting = ["dense-s0", "oneshot-2of4-s0", "asp-2of4-s0", "lbc-after-2of4-s0"]
    other = pretrained.open_lock(tmp_path / "runs" / "locks" / "dense-s0")  # as if another process were training it
    start(tmp_path, monkeypatch, "--seeds", "0", "1", "--patterns", "2:4")
    assert made.ran[:3] == ["srste-2of4-s0", "lbc-2of4-s0", "dense-s1"], "those after dense wait for their dense arm"
    assert not set(waiting) & set(made.ran)
    other.release()
    start(tmp_path, monkeypatch, "--seeds", "0", "1", "--patterns", "2:4")
    assert made.ran[-4:] == waiting


def test_other_settings_are_refused(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start(tmp_path, monkeypatch, "--seeds", "0", "--patterns", "2:4")
    made.recipe = {"sizes": {"train": 2}}
    with pytest.raises(SystemExit, match="other settings"):
        start(tmp_path, monkeypatch, "--seeds", "0", "--patterns", "2:4")


def test_options_are_numbers_where_they_can_be() -> None:
    assert pretrained.options(["end=0.8", "prior=equal"]) == {"end": 0.8, "prior": "equal"}
    assert pretrained.sizes(["train=60000"]) == {"train": 60000}


def test_the_tables_say_what_the_results_say(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = start(tmp_path, monkeypatch, "--seeds", "0", "1", "--patterns", "2:4")
    lines = tables.pretrained(found)
    assert "| dense | 90.1 | 2 |" in lines
    assert "| lbc | 88.1, -2.0 (-2.0 to -2.0) | 2 |" in lines
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "a.json").write_text(json.dumps(found))
    language = {
        "table": [
            {"method": "dense", "pattern": None, "seeds": 1, "accuracy_mean": None, "loss_mean": 0.69314718},
            {"method": "lbc", "pattern": "1:4", "seeds": 1, "accuracy_mean": None, "loss_mean": 1.38629436}
            | {"loss_gap_mean": 0.69314718, "loss_gap_low": None, "loss_gap_high": None},
        ]
    }
    (tmp_path / "results" / "b.json").write_text(json.dumps(language))
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    row = {"model": "A", "from": "a.json", "pattern": "2:4", "dense_bytes": 9e6, "packed_bytes": 6e6}
    times = {"best_ms": 3.0, "sparse_ms": 2.0, "layers_packed": 5}
    rows = [
        row | {"batch": {"1": times | {"layers_packed": 0}, "16": times}},
        row | {"from": "b.json", "pattern": "1:4", "packed_bytes": 4.5e6, "batch": {}},
    ]
    found = tables.gains({"rows": rows, "settings": {"batch": [1, 16]}})[2:]
    assert found[0] == "| A | 2:4 | 90.1 % | -2.0 | -3.0 | -4.0 | 2 | 9.0 -> 6.0 | 1.50 x | no layer packed | 1.50 x |"
    assert found[1].startswith("| A | 1:4 | 1.000 bits/byte | +1.000 |  |  | 1 | 9.0 -> 4.5 | 2.00 x |")
    assert found[1].endswith("| not measured | not measured |")


def test_an_interrupted_trainer_goes_on_from_a_whole_checkpoint(tmp_path: Path) -> None:
    import pretrained_minilm as minilm

    assert minilm.last_checkpoint(tmp_path, "nmlearn.pt") is None
    for step in (50, 100, 150):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").touch()
    for step in (50, 100):  # the process ended before nmlearn.pt was written into the last one
        (tmp_path / f"checkpoint-{step}" / "nmlearn.pt").touch()
    assert minilm.last_checkpoint(tmp_path, "nmlearn.pt") == str(tmp_path / "checkpoint-100")
    assert minilm.last_checkpoint(tmp_path, "") == str(tmp_path / "checkpoint-150")


def test_a_table_without_results_says_so(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- table nothing -->\n| old |\n<!-- end -->\n")
    assert tables.filled(page) == (
        "<!-- table nothing -->\n*Not measured yet: there is no results/nothing.json.*\n<!-- end -->\n"
    )
