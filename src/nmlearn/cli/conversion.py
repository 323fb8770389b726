"""The model file named on the command line, the patterns recorded in it, and the file written from it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from nmlearn.cli import console
from nmlearn.errors import ConfigError, FormatError, PatternError
from nmlearn.lab.train.run_files import PATTERNS
from nmlearn.maths.pattern import Pattern

MODEL = Path("model") / "model.safetensors"
SHOWN = 10  # runs that an error lists


def locate(path: Path) -> Path:
    """The file itself, or the finished model in a run folder.

    Raises:
        ConfigError: a folder without a finished run of its own; it names those in the folders within.
    """
    file = path / MODEL
    if not path.is_dir() or file.exists():
        return file if path.is_dir() else path
    found = sorted(str(each.parent.parent) for each in [*path.glob(f"*/{MODEL}"), *path.glob(f"runs/*/{MODEL}")])
    more = f", ... ({len(found) - SHOWN} more)" if len(found) > SHOWN else ""
    wrong = "it is a folder of runs" if found else f"there is no finished run in it: no {MODEL}"
    fix = f"name one: {', '.join(found[:SHOWN])}{more}" if found else "give a file, or the folder of a finished run"
    raise ConfigError(where="the model", given=path, wrong=wrong, fix=fix)


def patterns(file: Path) -> dict[str, str]:
    """The patterns that a run recorded in its model file, by weight; packing and unpacking keep them.

    Raises:
        FormatError: the file cannot be read, or its metadata is no table of patterns.
    """
    from nmlearn.files import model_file

    text = model_file.notes(file).get(PATTERNS, "{}")
    try:
        found = json.loads(text)
        if not isinstance(found, dict):
            raise ValueError("it is not a table")
        return {name: str(Pattern(pattern)) for name, pattern in found.items()}
    except (ValueError, RecursionError, PatternError) as error:
        raise FormatError(
            where=f"{file}: {PATTERNS}",
            given="metadata",
            wrong=f"its patterns cannot be read: {error}",
            fix="give the model file of a run, or a file without this metadata",
        ) from error


def written(source: Path, target: Path, write: Callable[[], None]) -> None:
    """Convert a file and print both sizes.

    Raises:
        WriteError: the system refuses, for lack of space or permission.
    """
    before = source.stat().st_size if source.exists() else 0  # the two may be one file
    write()
    after = target.stat().st_size
    console.out.print(f"{before:,} bytes → {after:,} bytes ({console.percent(after / before, 1)})", soft_wrap=True)
    console.out.print(f"written {target}", soft_wrap=True)
