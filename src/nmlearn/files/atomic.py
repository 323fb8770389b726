"""Atomic writes: a file is written in a folder next to its path, flushed to disk, then renamed."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from nmlearn.errors import WriteError
from nmlearn.files.paths import refusal

_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
_being_written: set[Path] = set()  # by this process


def write_atomic(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file as :func:`replacing` does, through an open one.

    Args:
        path: the file.
        write: writes the bytes to the open file it is given.

    Raises:
        WriteError: the system refuses. Nothing half-written is left, and an existing file is unchanged.
    """
    with replacing(path) as part, open(part, "wb") as file:
        lenient = _Lenient(file)
        write(lenient)  # type: ignore[arg-type]
        if lenient.error is not None:
            raise lenient.error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield the path of an empty file to write, which then replaces the file at `path`.

    A crash at any moment leaves the old file or the new one; if several processes write one path, the last one wins,
    never a mixture. The new file is written in a folder with a random name that only this user may enter, so nothing
    that somebody else put there is opened. A replaced file keeps its mode. A symbolic link is itself replaced, and its
    target is left alone: it may be shared, like the files in Hugging Face's cache.

    Args:
        path: the file; its folder is created.

    Raises:
        WriteError: the system refuses, or the path is a device, a pipe or a folder. Nothing half-written is left, and
            an existing file is unchanged.
    """
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file():
            raise OSError(errno.EINVAL, "it is not a file")
        folder = Path(tempfile.mkdtemp(".partial", f".{path.name}.{os.getpid()}.", path.parent))
        _being_written.add(folder)
        try:
            part = folder / path.name
            part.touch(exist_ok=False)
            mode = stat.S_IMODE((path if path.exists() and not path.is_symlink() else part).stat().st_mode)
            yield part
            _flush(part, os.O_RDWR)
            if stat.S_IMODE(part.stat().st_mode) != mode:
                part.chmod(mode)
            os.replace(part, path)
        finally:
            try:
                shutil.rmtree(folder, ignore_errors=True)
            finally:  # Ctrl-C, or a terminal that closes, may come while it is removed
                shutil.rmtree(folder, ignore_errors=True)
                _being_written.discard(folder)
        if hasattr(
            os, "O_DIRECTORY"
        ):  # the folder stores the rename; Windows cannot open one, and orders renames itself
            _flush(path.parent, os.O_RDONLY | os.O_DIRECTORY)


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn system errors while a file is written into an error that names the file.

    Raises:
        WriteError: for every OSError except a broken pipe, and for a path that no file can have.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except (OSError, ValueError) as error:
        if not (why := refusal(error)):
            raise
        number = getattr(error, "errno", None)
        full = number in _FULL
        raise WriteError(
            where=str(path),
            given=getattr(error, "filename", None) or errno.errorcode.get(number or 0, type(error).__name__),
            wrong=f"it cannot be written: {why}",
            fix="free space there, or choose another place; what was there before is unchanged"
            if full
            else "check the path and its permissions, or choose another place",
        ) from error


def sweep(path: Path) -> None:
    """Remove what processes killed while writing this file left next to it.

    Parts of processes that are alive on this machine stay. Call it only if no other machine writes this file.
    """
    left = re.compile(rf"\.{re.escape(path.name)}\.(\d{{1,9}})\.(\w+\.)?partial")
    for part in path.parent.iterdir() if os.path.isdir(path.parent) else ():
        found = left.fullmatch(part.name)
        if found is None or part in _being_written:
            continue
        if int(found[1]) == os.getpid() or not _alive(int(found[1])):
            shutil.rmtree(part, ignore_errors=True) if part.is_dir() else part.unlink(missing_ok=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True


def _flush(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _Lenient:
    """A file whose writes never fail: the first error is kept for later, and what follows it is dropped.

    torch.save reports an error in the middle as one about positions in archives, or not at all.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: BaseException | None = None

    def write(self, octets: Any) -> int:
        """Write or drop; report all bytes as written."""
        try:
            if self.error is None:
                self._file.write(octets)
        except BaseException as error:
            self.error = error
        return len(octets)

    def flush(self) -> None:
        """Do nothing: whoever opened the file flushes it."""
