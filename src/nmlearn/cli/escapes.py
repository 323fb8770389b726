"""Text from files, recipes and command lines, safe to show. Needs no other package."""

from __future__ import annotations

import argparse
from typing import NoReturn

LONGEST_NAME, LONGEST_TEXT = 200, 10_000  # characters shown of a name from a file, and of any text


def plain(text: str, longest: int = LONGEST_TEXT, keep: str = "") -> str:
    """What a terminal might obey is written as an escape, and what is very long is cut off.

    Args:
        text: any text; what this function has returned comes back as it is.
        longest: how many of its characters are shown.
        keep: control characters that may stay.
    """
    cut = text[:longest]
    shown = "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in cut)
    return f"{shown}... ({len(text) - longest:,} more characters)" if len(text) > longest else shown


class Parser(argparse.ArgumentParser):
    """A command's parser; an error quotes words, which may be the names of strangers' files."""

    def error(self, message: str) -> NoReturn:
        """Show the usage and the error, and exit."""
        super().error(plain(message))
