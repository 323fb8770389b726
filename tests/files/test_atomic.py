"""Files that are whole or absent: several writers, links, devices, modes, and what a killed writer leaves."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

import nmlearn as nm
from nmlearn.errors import WriteError
from nmlearn.files import atomic
from nmlearn.files.atomic import replacing, sweep, write_atomic


def test_of_two_writers_of_one_path_the_last_one_wins_and_nothing_is_mixed(tmp_path: Path) -> None:
    """Both have opened their file before either writes, and both write at once; one process, so one number."""
    path, opened, written = tmp_path / "file", threading.Barrier(2), threading.Barrier(2)

    def write(letter: bytes) -> None:
        def slowly(file) -> None:
            opened.wait(10)
            for _ in range(100):
                file.write(letter * 10_000)
            written.wait(10)

        write_atomic(path, slowly)

    threads = [threading.Thread(target=write, args=(letter,)) for letter in (b"a", b"b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert path.read_bytes() in (b"a" * 1_000_000, b"b" * 1_000_000)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_two_models_saved_to_one_path_are_one_of_them(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    states = [{"w": torch.full((200_000,), float(i))} for i in range(2)]

    def save(state: dict[str, torch.Tensor]) -> None:
        for _ in range(10):
            nm.save(state, path)

    threads = [threading.Thread(target=save, args=(state,)) for state in states]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert any(torch.equal(nm.load(path)["w"], state["w"]) for state in states)
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


def test_the_place_of_writing_is_new_private_and_not_to_be_guessed(tmp_path: Path) -> None:
    path, places = tmp_path / "file", set()
    for _ in range(3):
        with replacing(path) as part:
            places.add(part)
            assert part.parent.parent == tmp_path and stat.S_IMODE(part.parent.stat().st_mode) == 0o700
            assert part.is_file() and not part.is_symlink() and part.stat().st_size == 0
    assert len(places) == 3


def test_a_planted_link_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if the random name is guessed, an existing file is not opened: another name is used."""
    victim, path = tmp_path / "victim", tmp_path / "file"
    victim.mkdir()
    guesses = iter(["guessed", "other"])
    monkeypatch.setattr(atomic.tempfile, "_get_candidate_names", lambda: guesses)
    (tmp_path / f".file.{os.getpid()}.guessed.partial").symlink_to(victim)
    write_atomic(path, lambda file: file.write(b"new"))
    assert path.read_bytes() == b"new" and not list(victim.iterdir())


@pytest.mark.parametrize("model", [True, False])
def test_modes(tmp_path: Path, model: bool) -> None:
    """A new file has the mode that any new file has; one that is replaced keeps its own."""
    path, other = tmp_path / "file", tmp_path / "other"

    def write() -> None:
        if model:
            nm.save({"a": torch.ones(2)}, path)
        else:
            write_atomic(path, lambda file: file.write(b"new"))

    other.touch()
    write()
    assert path.stat().st_mode == other.stat().st_mode
    for mode in (0o600, 0o664, 0o444):
        path.chmod(mode)
        write()
        assert stat.S_IMODE(path.stat().st_mode) == mode


def test_a_link_is_replaced_and_what_it_leads_to_is_left_alone(tmp_path: Path) -> None:
    target, path = tmp_path / "target", tmp_path / "link"
    target.write_bytes(b"shared")
    target.chmod(0o640)
    path.symlink_to(target)
    write_atomic(path, lambda file: file.write(b"new"))
    assert not path.is_symlink() and path.read_bytes() == b"new"
    assert target.read_bytes() == b"shared" and stat.S_IMODE(target.stat().st_mode) == 0o640


def test_devices_pipes_and_folders_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "null").symlink_to(os.devnull)
    before = sorted(tmp_path.iterdir())
    for path in (tmp_path / "pipe", tmp_path / "folder", tmp_path / "null", Path(os.devnull)):
        with pytest.raises(WriteError, match="it is not a file") as caught:
            write_atomic(path, lambda file: file.write(b"new"))
        assert caught.value.where == str(path)
    assert sorted(tmp_path.iterdir()) == before and stat.S_ISCHR(os.stat(os.devnull).st_mode)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError])
def test_an_error_leaves_what_was_there(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(WriteError if error is OSError else error), replacing(path) as part:
        part.write_bytes(b"half")
        raise error
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["file"]


def test_an_interrupt_while_the_place_of_writing_is_removed_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove, interrupts = atomic.shutil.rmtree, [KeyboardInterrupt]

    def interrupted(*args: object, **options: object) -> None:
        if interrupts:
            raise interrupts.pop()
        remove(*args, **options)

    monkeypatch.setattr(atomic.shutil, "rmtree", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(tmp_path / "x", lambda file: file.write(b"new"))
    assert (tmp_path / "x").read_bytes() == b"new" and os.listdir(tmp_path) == ["x"]
    assert not atomic._being_written


def test_a_killed_writer_is_swept_and_a_living_one_is_not(tmp_path: Path) -> None:
    code = "import os, sys, pathlib\nfrom nmlearn.files.atomic import replacing\n"
    code += "with replacing(pathlib.Path(sys.argv[1])) as part:\n part.write_bytes(b'half')\n os._exit(1)"
    path = tmp_path / "file[1]"
    subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    before = tmp_path / f".{path.name}.{os.getpid()}.partial"  # this number's process of before, another container's
    before.touch()
    others = [tmp_path / f".{path.name}.{os.getppid()}.x.partial", tmp_path / f".{path.name}.b.1.x.partial"]
    for other in others:
        other.mkdir()
    assert len(list(tmp_path.iterdir())) == 4
    with replacing(path) as part:
        sweep(path)
        assert sorted(tmp_path.iterdir()) == sorted([*others, part.parent])
    sweep(tmp_path / "none" / "file")
