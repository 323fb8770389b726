"""The text and JSON files of a run, written by :mod:`nmlearn.files.atomic`: whole or absent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

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


def read_json(path: Path) -> dict[str, Any]:
    """The mapping in a JSON file.

    Raises:
        FormatError: it cannot be read, or holds another value.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        refuse(path, f"it is not readable as JSON: {error}", error)
    if not isinstance(value, dict):
        refuse(path, f"it is no mapping but a {type(value).__name__}")
    return value


def refuse(path: Path, wrong: str, error: Exception | None = None) -> NoReturn:
    """Refuse a file of a run.

    Raises:
        FormatError: always.
    """
    raise FormatError(where=str(path), given="this file", wrong=wrong, fix="delete the file or the run") from error
