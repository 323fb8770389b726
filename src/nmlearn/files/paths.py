"""Paths that the system refuses."""

from __future__ import annotations


def refusal(error: OSError | ValueError) -> str:
    """What is wrong with a path, in the words of the system; empty if the error does not say that.

    A path with a NUL character or half a surrogate pair never reaches the system: Python raises ValueErrors of its own,
    and only their texts tell them from others.
    """
    if isinstance(error, OSError):
        return error.strerror or str(error) or type(error).__name__
    if isinstance(error, UnicodeEncodeError):
        return "half a surrogate pair is no text" if error.reason == "surrogates not allowed" else ""
    return "no path has a NUL character" if "embedded null" in str(error) else ""
