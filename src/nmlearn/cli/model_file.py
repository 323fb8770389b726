"""The model file that a command line names, and what became of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from nmlearn.cli import console


def locate(path: Path) -> Path:
    """The file itself; of a run folder, its finished model."""
    return path / "model" / "model.safetensors" if path.is_dir() else path


def written(source: Path, target: Path, write: Callable[[], None]) -> None:
    """Write a file from another and say how large they are.

    Raises:
        WriteError: the system refuses, for want of space or a permission.
    """
    before = source.stat().st_size if source.exists() else 0  # the two may be one file
    write()
    after = target.stat().st_size
    console.out.print(f"{before:,} bytes → {after:,} bytes ({console.percent(after / before, 1)})", soft_wrap=True)
    console.out.print(f"written {target}", soft_wrap=True, markup=False)
