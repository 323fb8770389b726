"""A file that is whole or absent: written beside its place, flushed to the disk, then renamed."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from nmlearn.errors import WriteError

_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}


def write_atomic(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file so that after a crash at any moment it holds either the old bytes or the new ones.

    Args:
        path: the file; its folder is made.
        write: writes the bytes to the open file it is given.

    Raises:
        WriteError: the system refuses. Nothing half-written is left, and what was there before is as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                patient = _Patient(file)
                write(patient)  # type: ignore[arg-type]
                if patient.error is not None:
                    raise patient.error
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        _flush_folder(path.parent)


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn what the system says while a file is written into an error that names the file.

    Raises:
        WriteError: for every OSError but a broken pipe.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        full = error.errno in _FULL
        raise WriteError(
            where=str(path),
            given=error.filename or errno.errorcode.get(error.errno or 0, type(error).__name__),
            wrong=f"it cannot be written: {error.strerror or error}",
            fix="free space there, or choose another place; what was there before is as it was"
            if full
            else "check the path and its permissions, or choose another place",
        ) from error


def sweep(path: Path) -> None:
    """Remove what processes that were killed while they wrote this file have left beside it.

    Parts of processes that are alive on this machine stay. Call it where no other machine writes this file.
    """
    for part in path.parent.glob(f".{path.name}.*.partial"):
        owner = part.name.removesuffix(".partial").rpartition(".")[2]
        if not owner.isdigit() or int(owner) == os.getpid() or not _alive(int(owner)):
            part.unlink(missing_ok=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True


def _flush_folder(folder: Path) -> None:
    # The rename itself lives in the folder; where folders cannot be opened (Windows), the system orders it.
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _Patient:
    """A file whose writing never fails: the first error is kept for later, and what comes after it is dropped.

    An error in the middle of torch.save comes out as one about positions in archives, or not at all.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: BaseException | None = None

    def write(self, octets: Any) -> int:
        """Write, or drop; either way all was taken."""
        try:
            if self.error is None:
                self._file.write(octets)
        except BaseException as error:
            self.error = error
        return len(octets)

    def flush(self) -> None:
        """Nothing: whoever opened the file flushes it."""
