"""Options by name: the checks that data sources, models and methods share."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from numbers import Integral, Real

from nmlearn.errors import ConfigError

_KINDS: dict[str, tuple[type, str]] = {
    "int": (Integral, "a whole number"),
    "float": (Real, "a number"),
    "str": (str, "text"),
    "bool": (bool, "true or false"),
}


def check_name(where: str, name: str, known: Iterable[str], what: str, fix: str = "leave it out") -> None:
    """Refuse a name that is not known.

    Args:
        where: what errors call the place.
        name: what was given.
        known: the names there are.
        what: what such a name stands for, as in "there is no such model".
        fix: what to do where there are no names at all.

    Raises:
        ConfigError: it names the nearest known one.
    """
    names = list(known)
    if name in names:
        return
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    fix = f"{hint}known: {', '.join(names)}" if names else fix
    raise ConfigError(where=where, given=repr(name), wrong=f"there is no such {what}", fix=fix)


def check_type(where: str, value: object, annotation: str) -> None:
    """Refuse a value that is not of the annotated type.

    Args:
        where: what errors call the place.
        value: what was given.
        annotation: int, float, str or bool, or one of them or None; values of other types are not checked.

    Raises:
        ConfigError: it says what the value must be. True and false are no numbers.
    """
    wanted = annotation.removesuffix(" | None")
    if wanted not in _KINDS or (wanted != annotation and value is None):
        return
    kind, said = _KINDS[wanted]
    if not isinstance(value, kind) or (isinstance(value, bool) and wanted != "bool"):
        raise ConfigError(where=where, given=repr(value), wrong=f"must be {said}", fix=f"give {said}")
