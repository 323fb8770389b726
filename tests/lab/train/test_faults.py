"""What happens when training is killed, interrupted, or the disk is full: docs/faults.md, line by line."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch

import dying
import nmlearn as nm
import nmlearn.files.atomic
import nmlearn.files.formats.container
import nmlearn.lab.report
import nmlearn.lab.train.folder
import toy
from nmlearn import cli
from nmlearn.cli import console
from nmlearn.errors import WriteError
from nmlearn.lab.train import checkpoints, recipe, train
from processes import apart


@pytest.fixture(autouse=True)
def _toys(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    toy.register()
    monkeypatch.setattr(console.err, "width", 400)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # which in the background would be ignored
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(("kills", "seed"), [(2, 3), pytest.param(50, 7, marks=pytest.mark.slow)])
def test_killed_at_any_moment_a_run_ends_with_the_same_bits(tmp_path: Path, kills: int, seed: int) -> None:
    """Weights, optimizer, sparsifier, average, metrics, model files, plan, summary; and nothing is left behind."""
    found = apart(dying.main, tmp_path, kills, seed)
    assert sum(found["deaths"].values()) == kills
    assert found["differences"] == []
    assert set(found["codes"]) <= {0, -signal.SIGKILL}


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize(("kind", "number"), [("step", 8), ("write", 250)])
def test_an_interruption_says_so_and_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, number: int, sent: signal.Signals
) -> None:
    """Between steps, and within torch.save, where an exception has to get through C++."""
    train(toy.config(tmp_path / "whole", checkpoint_every=3))
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe.dumps(toy.config(tmp_path / "run", checkpoint_every=3)))
    moments = dying.Moments(kind, number, sent)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nmlearn.files.atomic, "open", moments.open, raising=False)
        tell = nmlearn.lab.train.journal.Journal.tell
        patch.setattr(
            nmlearn.lab.train.journal.Journal, "tell", lambda self, e: (moments.pass_by(e["event"]), tell(self, e))
        )
        assert cli.main(["train", "--config", str(path)]) == 130
    assert "same command resumes from the last checkpoint" in capsys.readouterr().err
    assert checkpoints.load(tmp_path / "run" / "checkpoints" / "last.pt")["step"] in (3, 6)
    assert not list(tmp_path.rglob("*.partial"))
    assert cli.main(["train", "--config", str(path)]) == 0
    models = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("whole", "run")]
    assert models[0] == models[1]


def test_a_terminal_that_is_closed_ends_a_run_as_ctrl_c_does(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe.dumps(toy.config(tmp_path / "run", epochs=10_000)))
    assert apart(dying.closed_terminal, path, tmp_path / "run" / "checkpoints" / "last.pt") == 130
    assert checkpoints.load(tmp_path / "run" / "checkpoints" / "last.pt")["step"] > 0
    assert not list(tmp_path.rglob("*.partial"))


def test_a_run_under_nohup_outlives_its_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        monkeypatch.setattr(cli, "_run", lambda words: signal.raise_signal(signal.SIGHUP) or 0)
        assert cli.main(["train"]) == 0
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_what_cannot_go_on_does_not_say_that_it_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "_run", lambda words: signal.raise_signal(signal.SIGINT))
    assert cli.main(["pack", "a", "b"]) == 130
    assert capsys.readouterr().err == "\nInterrupted.\n"


class Full:
    """A file on a disk with room for so many bytes more; of the write that does not fit, what fits is written."""

    def __init__(self, file: Any, room: int) -> None:
        self._file, self._room = file, room

    def write(self, octets: Any) -> int:
        octets = bytes(octets)
        self._file.write(octets[: self._room])
        if len(octets) > self._room:
            self._room = 0
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._room -= len(octets)
        return len(octets)

    def __enter__(self) -> Full:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


@contextmanager
def full_disk(room: int, name: str) -> Iterator[None]:
    def opened(path: Any, *args: Any, **kwargs: Any) -> Any:
        file = open(path, *args, **kwargs)  # noqa: SIM115, closed as the file would be
        return Full(file, room) if name in Path(path).name and args[0] != "rb" else file

    def serialized(specs: Any, path: Path, metadata: Any) -> None:
        """What safetensors says of a full disk; it opens its files itself."""
        if name not in path.name:
            return safetensors.serialize_file(specs, path, metadata)
        path.write_bytes(bytes(room))
        raise safetensors.SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    with pytest.MonkeyPatch.context() as patch:
        for module in (nmlearn.files.atomic, nmlearn.lab.train.folder):
            patch.setattr(module, "open", opened, raising=False)
        patch.setattr(nmlearn.files.formats.container, "serialize_file", serialized)
        yield


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """The system's own refusal: no file of this process may become larger."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def check_message(error: WriteError, name: str) -> None:
    assert error.where.endswith(name)
    assert "cannot be written" in error.wrong
    assert "free space" in error.fix
    assert "enforce fail" not in str(error)


FAILING: list[tuple[str, Callable[[], Any]]] = [
    *((f"{room} bytes", lambda room=room: full_disk(room, "last.pt")) for room in (0, 1, 500, 5000, 20000)),
    ("the system's limit", lambda: largest_file(16384)),
]


@pytest.mark.parametrize("disk", [disk for _, disk in FAILING], ids=[name for name, _ in FAILING])
def test_a_full_disk_ends_the_run_and_spares_its_checkpoint(tmp_path: Path, disk: Callable[[], Any]) -> None:
    config = toy.config(tmp_path / "run", checkpoint_every=3)
    stack: list[Any] = []

    def fill(event: dict[str, Any]) -> None:
        if event["event"] == "step" and event["step"] == 4:
            stack.append(disk())
            stack[0].__enter__()

    try:
        with pytest.raises(WriteError) as caught:
            train(config, fill)
    finally:
        stack[0].__exit__(None, None, None)
    check_message(caught.value, "last.pt")
    assert checkpoints.load(tmp_path / "run" / "checkpoints" / "last.pt")["step"] == 3
    assert not list(tmp_path.rglob("*.partial"))
    train(config)
    train(toy.config(tmp_path / "whole", checkpoint_every=3))
    models = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("whole", "run")]
    assert models[0] == models[1]


@pytest.mark.parametrize("name", ["config.yaml", "env.json", "model.safetensors", "summary.json", "metrics.jsonl"])
def test_a_full_disk_at_every_other_file(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe.dumps(toy.config(tmp_path / "run", checkpoint_every=3, epochs=1)))
    with full_disk(100, name):
        assert cli.main(["train", "--config", str(path)]) == 2
    shown = capsys.readouterr().err
    assert "WriteError" in shown and name in shown and "free space" in shown
    assert not list(tmp_path.rglob("*.partial"))
    metrics = tmp_path / "run" / "metrics.jsonl"
    assert all(json.loads(line) for line in metrics.read_text().splitlines()) if metrics.exists() else True
    assert cli.main(["train", "--config", str(path)]) == 0
    assert (tmp_path / "run" / "summary.json").exists()


def test_a_full_disk_leaves_a_line_of_the_metrics_whole(tmp_path: Path) -> None:
    run = nmlearn.lab.train.folder.RunFolder(tmp_path)
    run.append({"event": "first"})
    with full_disk(5, "metrics.jsonl"), pytest.raises(WriteError) as caught:
        run.append({"event": "second"})
    check_message(caught.value, "metrics.jsonl")
    assert (tmp_path / "metrics.jsonl").read_text() == '{"event": "first"}\n'


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("disk", [lambda: full_disk(700, "model"), lambda: largest_file(1024)])
def test_a_full_disk_leaves_the_model_file_that_was_there(tmp_path: Path, disk: Any, packed: bool) -> None:
    path = tmp_path / "model.safetensors"
    nm.save(torch.nn.Linear(16, 16), path, packed=packed)
    before = path.read_bytes()
    with disk(), pytest.raises(WriteError) as caught:
        nm.save(torch.nn.Linear(16, 32), path, packed=packed)
    check_message(caught.value, "model.safetensors")
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_full_disk_is_named_also_by_what_torch_saves(tmp_path: Path) -> None:
    with full_disk(700, "state"), pytest.raises(WriteError) as caught:
        nmlearn.files.atomic.write_atomic(tmp_path / "state.pt", lambda file: torch.save(torch.zeros(1000), file))
    check_message(caught.value, "state.pt")


def test_a_run_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(WriteError):
        train(toy.config(tmp_path / "file" / "run"))


def test_a_full_disk_leaves_the_report_that_was_there(tmp_path: Path) -> None:
    train(toy.config(tmp_path, epochs=1))
    before = nmlearn.lab.report.write(tmp_path).read_bytes()
    with full_disk(1000, "report"), pytest.raises(WriteError) as caught:
        nmlearn.lab.report.write(tmp_path)
    check_message(caught.value, "report.html")
    assert (tmp_path / "report.html").read_bytes() == before
    assert not list(tmp_path.rglob("*.partial"))


def test_a_folder_that_may_not_be_written_is_no_full_disk(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(WriteError, match="permissions") as caught:
        nm.save(torch.nn.Linear(4, 4), tmp_path / "file" / "model.safetensors")
    assert "free space" not in caught.value.fix


def test_a_run_that_is_replaced_is_never_taken_for_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed while ``--resume none`` clears the folder, the summary is gone before what it speaks of."""
    train(toy.config(tmp_path, epochs=1))
    gone: list[str] = []
    unlink = Path.unlink
    monkeypatch.setattr(Path, "unlink", lambda self, **k: (gone.append(self.name), unlink(self, **k)))
    nmlearn.lab.train.folder.RunFolder(tmp_path).clear()
    assert gone[0] == "summary.json" and {"last.pt", "model.safetensors"} <= set(gone)
