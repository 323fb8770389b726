"""The settings of methods: every field is checked against its annotation, so that an error names the field."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import fields
from types import NoneType, UnionType
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

from nmlearn.errors import ConfigError, check_type, shown


def refuse(option: str, given: object, wrong: str, fix: str) -> NoReturn:
    """Refuse the setting of an option.

    Raises:
        ConfigError: always.
    """
    raise ConfigError(where=f"method.options.{option}", given=given, wrong=wrong, fix=fix)


def check_choice(option: str, given: object, known: Sequence[str]) -> None:
    """Refuse a setting that is none of the known words.

    Raises:
        ConfigError: it lists them.
    """
    if not isinstance(given, str) or given not in known:
        refuse(option, shown(given), "there is no such choice", f"write {' or '.join(map(repr, known))}")


def check_not_negative(method: object, *options: str) -> None:
    """Refuse numbers below 0.

    Raises:
        ConfigError: it names the first.
    """
    for option in options:
        given = getattr(method, option)
        if given is not None and given < 0:
            refuse(option, given, "it cannot be negative", "leave it out")


def settle(method: Any) -> None:
    """Check the fields of a method by their annotations, and store numbers as Python's own and lists as tuples.

    Numbers (``int``, ``float``), ``str``, ``bool``, ``Literal``, tuples of these, and ``None`` with one of them are
    known; fields of other annotations are left to the method.

    Raises:
        ConfigError: a value of another type, a number that is not finite or too large, another word.
    """
    for option, hint in _hints(method.__class__).items():
        object.__setattr__(method, option, _settled(option, getattr(method, option), hint))


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    try:
        found = get_type_hints(kind)
    except NameError:  # an annotation that only a type checker sees: a method that is not ours checks itself
        return {}
    return {field.name: found[field.name] for field in fields(kind)}


def _settled(option: str, value: Any, hint: Any) -> Any:
    """A value as the annotation wants it."""
    parts = get_args(hint)
    if get_origin(hint) in (Union, UnionType) and len(parts) == 2 and NoneType in parts:
        return None if value is None else _settled(option, value, parts[parts[0] is NoneType])
    if get_origin(hint) is Literal:
        check_choice(option, value, parts)
    elif get_origin(hint) is tuple:
        if not isinstance(value, list | tuple) or len(value) != len(parts):
            refuse(option, shown(value), f"it has {len(parts)} parts", "give them as a list or a tuple")
        return tuple(_settled(option, part, each) for part, each in zip(value, parts, strict=True))
    elif hint in (int, float, str, bool):
        check_type(f"method.options.{option}", value, hint.__name__)
        return hint(value)
    return value
