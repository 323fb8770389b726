"""A run folder in whose files anything may stand, or that may only be read: what is told of it is never a traceback."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st

import nmlearn.files.atomic
import nmlearn.lab.report
import toy
import wrong_states
from nmlearn import cli
from nmlearn.errors import FormatError, NMLearnError, WriteError
from nmlearn.lab.train import recipe, run_files, train
from nmlearn.lab.train.folder import RunFolder

FILES = ["summary.json", "env.json", "plan.json", "metrics.jsonl", "config.yaml"]
GARBAGE = [b"", b"[]", b"{}", b"3", b"null", b"\xff\xfe", b"{", b'{"a": 1e999}', b"[" * 100_000, b"1" * 5000, b"NaN"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    toy.register()
    folder = tmp_path_factory.mktemp("finished") / "run"
    train(toy.config(folder, epochs=1, log_every=3))
    nmlearn.lab.report.write(folder)
    return folder


def wrong_json(text: str, data: st.DataObject) -> bytes:
    """JSON, or lines of it, with one value that is missing or another; or no such thing."""
    if data.draw(st.booleans()):
        return data.draw(st.sampled_from(GARBAGE))
    lines = text.splitlines() if text.count("\n{") else [text]
    place = data.draw(st.integers(0, len(lines) - 1))
    changed = wrong_states.with_one_change(json.loads(lines[place]), data)
    try:
        lines[place] = json.dumps(changed, default=str)
    except ValueError:  # a number that is too long for JSON's own writer
        reject()
    return "\n".join(lines).encode()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_file_of_a_run(finished: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(FILES))
    path = finished / name
    sound = path.read_bytes()
    text = json.dumps(recipe.load(path)) if name == "config.yaml" else sound.decode()
    path.write_bytes(wrong_json(text, data))
    words = ["train", "--config", str(finished.parent / "recipe.yaml")]
    (finished.parent / "recipe.yaml").write_text(recipe.dumps(toy.config(finished, epochs=1, log_every=3)))
    try:
        with_report(finished)
        assert cli.main(words) in (0, 2)
    finally:
        path.write_bytes(sound)


def with_report(folder: Path) -> None:
    try:
        nmlearn.lab.report.write(folder)
    except NMLearnError as error:
        assert error.fix


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        ("summary.json", lambda s: s.update(loss="low"), "loss is no number"),
        ("summary.json", lambda s: s.pop("density"), "no density"),
        ("summary.json", lambda s: s.update(seconds=float("nan")), "seconds is no number"),
    ],
)
def test_what_is_wrong_in_a_summary_is_named(
    finished: Path, tmp_path: Path, file: str, change: Callable[[dict[str, Any]], object], said: str
) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "run"))
    value = json.loads((folder / file).read_text())
    change(value)
    (folder / file).write_text(json.dumps(value))
    with pytest.raises(FormatError, match=said):
        RunFolder(folder).summary()


@pytest.fixture
def read_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """No file can be made, changed or removed; permissions would not keep root from it."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(nmlearn.files.atomic.tempfile, "mkdtemp", refuse)
    for name in ("touch", "unlink"):
        monkeypatch.setattr(Path, name, refuse)
    monkeypatch.setattr(os, "truncate", refuse)


def test_a_finished_run_that_may_only_be_read(
    finished: Path, tmp_path: Path, read_only: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "--config", str(tmp_path / "recipe.yaml")]
    (tmp_path / "recipe.yaml").write_text(recipe.dumps(toy.config(finished, epochs=1, log_every=3)))
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    assert cli.main(words) == 0
    assert "had already finished" in capsys.readouterr().out
    assert cli.main([*words, "--resume", "none"]) == 2
    assert cli.main(["report", str(finished)]) == 2
    assert "cannot be written" in " ".join(capsys.readouterr().err.split())
    monkeypatch.undo()
    assert cli.main([*words, "--resume", str(finished), "--out", str(tmp_path / "other")]) == 0
    assert cli.main(["report", str(finished), "--out", str(tmp_path / "page.html")]) == 0
    assert (tmp_path / "page.html").stat().st_size > 1000
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before


def test_a_folder_that_may_only_be_read_is_named(finished: Path, read_only: None) -> None:
    with pytest.raises(WriteError, match=r"summary\.json.*Read-only"):
        RunFolder(finished).clear()
    with pytest.raises(WriteError, match=r"metrics\.jsonl.*Read-only"):
        RunFolder(finished).cut_metrics(0)


def test_a_value_that_is_no_mapping_is_refused(tmp_path: Path) -> None:
    for octets in GARBAGE:
        (tmp_path / "x.json").write_bytes(octets)
        if octets not in (b"{}", b'{"a": 1e999}'):
            with pytest.raises(FormatError, match=r"x\.json"):
                run_files.read_json(tmp_path / "x.json")
