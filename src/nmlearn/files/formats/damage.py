"""The error for every damaged file."""

from __future__ import annotations

from nmlearn.errors import FormatError


def damaged(where: str, given: object, wrong: str, fix: str = "write or download the file again") -> FormatError:
    """The error to raise about a place in a file (the tensor's name, where there is one)."""
    return FormatError(where=where, given=given, wrong=wrong, fix=fix)
