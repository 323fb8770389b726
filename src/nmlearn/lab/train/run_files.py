"""The text and JSON files of a run, written by :mod:`nmlearn.files.atomic`: whole or absent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nmlearn.errors import FormatError
from nmlearn.files.atomic import explained as explained
from nmlearn.files.atomic import sweep as sweep
from nmlearn.files.atomic import write_atomic as write_atomic

PATTERNS = "nmlearn.patterns"  # in the metadata of a run's model: JSON, weight -> pattern


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    write_atomic(path, lambda file: file.write(text.encode()))


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically. NaN is refused (ValueError): it is not valid JSON, and readers fail on it."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """The value in a JSON file.

    Raises:
        FormatError: it cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FormatError(
            where=str(path),
            given="this file",
            wrong=f"it is not readable as JSON: {error}",
            fix="delete the file or the run",
        ) from error
