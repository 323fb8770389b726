"""The model file named on the command line, and the file written from it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from nmlearn.cli import console


def locate(path: Path) -> Path:
    """The file itself, or the finished model in a run folder."""
    return path / "model" / "model.safetensors" if path.is_dir() else path


def written(source: Path, target: Path, write: Callable[[], None]) -> None:
    """Convert a file and print both sizes.

    Raises:
        WriteError: the system refuses, for lack of space or permission.
    """
    before = source.stat().st_size if source.exists() else 0  # the two may be one file
    write()
    after = target.stat().st_size
    console.out.print(f"{before:,} bytes → {after:,} bytes ({console.percent(after / before, 1)})", soft_wrap=True)
    console.out.print(f"written {target}", soft_wrap=True, markup=False)
