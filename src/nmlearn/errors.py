"""Everything nmlearn raises on purpose.

    NMLearnError
    ├── PatternError      a pattern, or a weight that a pattern does not fit
    ├── ScheduleError     a start, end or exponent that makes no schedule
    ├── PlanError         rules that match nothing, weights that cannot be sparse
    ├── AttachError       an optimizer or a model that a sparsifier cannot work with
    ├── StateError        a state that belongs to another model, pattern or method; scores that are not finite
    ├── ViolationError    a weight that breaks its pattern
    ├── KernelError       operands that a kernel does not take
    ├── ConfigError       a configuration value, a command-line argument, a missing optional package
    ├── DataError         data that is missing or is not what it should be
    ├── FormatError       a file that is not what it says
    ├── WriteError        a file that cannot be written: a full disk, a missing permission
    └── ExportError       a model that cannot be exported, or an export that computes something else

Each says four things: where, what was given, what is wrong, what to do.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, is_dataclass
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints


class NMLearnError(Exception):
    """Base of all errors raised by nmlearn.

    Args:
        where: the place, in the user's words: a weight's qualified name, a configuration key, a file.
        given: what was found there; any object, shown with ``str``.
        wrong: what is wrong with it.
        fix: what the user can do.
    """

    def __init__(self, *, where: str, given: object, wrong: str, fix: str) -> None:
        self.where = where
        self.given = given if isinstance(given, str) else shown(given, str)
        self.wrong = wrong
        self.fix = fix
        super().__init__(where, given, wrong, fix)

    def __str__(self) -> str:
        return f"{self.where}: given {self.given}: {self.wrong}; {self.fix}"

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword-only arguments do not survive Exception's own pickling, and errors cross process borders in `compare`.
        return (_rebuild, (type(self), self.where, self.given, self.wrong, self.fix))


def shown(value: object, text: Callable[[object], str] = repr) -> str:
    """A value as an error shows it, however it fails to: Python writes no number of more than 4,300 digits."""
    try:
        return text(value)
    except Exception:
        return f"a value of type {type(value).__name__}"


def _rebuild(kind: type[NMLearnError], where: str, given: str, wrong: str, fix: str) -> NMLearnError:
    return kind(where=where, given=given, wrong=wrong, fix=fix)


class PatternError(NMLearnError):
    """A pattern, or a weight that a pattern does not fit."""


class ScheduleError(NMLearnError):
    """A start, end or exponent that makes no schedule."""


class PlanError(NMLearnError):
    """Rules that match nothing, or weights that cannot be sparse."""


class AttachError(NMLearnError):
    """An optimizer or a model that a sparsifier cannot work with."""


class StateError(NMLearnError):
    """A state of another model, pattern or method, or scores that are not finite."""


class ViolationError(NMLearnError):
    """A weight that breaks its pattern."""


class KernelError(NMLearnError):
    """Operands that a kernel does not take."""


class ConfigError(NMLearnError):
    """A configuration value, a command-line argument or a missing optional package."""


class DataError(NMLearnError):
    """Data that is missing, or is not what it should be."""


class FormatError(NMLearnError):
    """A file that is not what it says."""


class WriteError(NMLearnError):
    """A file that cannot be written; what was there before is as it was."""


class ExportError(NMLearnError):
    """A model that cannot be exported, or an export that computes something else."""


# Options by name: the checks that configurations, data sources, models and methods share.

_KINDS: dict[str, tuple[type, str]] = {
    "int": (Integral, "a whole number"),
    "float": (Real, "a number"),
    "str": (str, "text"),
    "bool": (bool, "true or false"),
}
# A larger number is an error somewhere within torch: of int64, or of what float32 shall hold of sums and products.
_LARGEST = {"int": 2**63 - 1, "float": 1e30}


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
        ConfigError: it says what the value must be. True and false are no numbers; numbers are finite, whole ones below
            2**63, others at most 1e30.
    """
    wanted = annotation.removesuffix(" | None")
    if wanted not in _KINDS or (wanted != annotation and value is None):
        return
    kind, said = _KINDS[wanted]
    if not isinstance(value, kind) or (isinstance(value, bool) and wanted != "bool"):
        _refuse(where, value, f"must be {said}", f"give {said}")
    largest = _LARGEST.get(wanted)
    if largest is not None and not -largest <= value <= largest:  # type: ignore[operator]
        wrong = f"must be {said} that is finite and at most {largest:.3g}"
        _refuse(where, value, wrong, f"give {said} in that range")


def check_choice(where: str, given: object, known: Iterable[str]) -> None:
    """Refuse what is none of the known words.

    Raises:
        ConfigError: it lists them.
    """
    words = list(known)
    if not isinstance(given, str) or given not in words:
        _refuse(where, given, "there is no such choice", f"write {' or '.join(map(repr, words))}")


def settle(settings: Any, prefix: str) -> None:
    """Check the fields of a dataclass by their annotations; store numbers as Python's own, and lists as tuples.

    Numbers (``int``, ``float``), ``str``, ``bool``, ``Literal``, tuples, mappings, dataclasses, and ``None`` with one
    of them are known; fields of other annotations are left to the dataclass.

    Args:
        settings: the dataclass, which may be frozen.
        prefix: what stands before a field's name in errors.

    Raises:
        ConfigError: a value of another type, a number that is not finite or too large, another word.
    """
    for name, hint in _hints(settings.__class__).items():
        object.__setattr__(settings, name, _settled(f"{prefix}{name}", getattr(settings, name), hint))


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    try:
        found = get_type_hints(kind)
    except NameError:  # an annotation that only a type checker sees: such a dataclass is not ours, and checks itself
        return {}
    return {field.name: found[field.name] for field in fields(kind)}


def _settled(where: str, value: Any, hint: Any) -> Any:
    """A value as the annotation wants it."""
    kind, parts = get_origin(hint), get_args(hint)
    if kind in (Union, UnionType) and len(parts) == 2 and NoneType in parts:
        return None if value is None else _settled(where, value, parts[parts[0] is NoneType])
    if kind is tuple:
        return _settled_tuple(where, value, parts)
    if kind is Literal:
        check_choice(where, value, parts)
    elif hint in (int, float, str, bool):
        check_type(where, value, hint.__name__)
        return hint(value)
    elif kind is dict and not isinstance(value, Mapping):
        _refuse(where, value, "must be a mapping of keys", "give a mapping")
    elif isinstance(hint, type) and is_dataclass(hint) and not isinstance(value, hint):
        _refuse(where, value, f"must be a {hint.__name__}", f"give a {hint.__name__}")
    return value


def _settled_tuple(where: str, value: Any, parts: tuple[Any, ...]) -> tuple[Any, ...]:
    any_length = parts[-1] is Ellipsis
    if not isinstance(value, list | tuple) or not (any_length or len(value) == len(parts)):
        count = "any number of" if any_length else len(parts)
        _refuse(where, value, f"it has {count} parts", "give them as a list or a tuple")
    kinds = parts[:1] * len(value) if any_length else parts
    return tuple(_settled(where, part, kind) for part, kind in zip(value, kinds, strict=True))


def _refuse(where: str, given: object, wrong: str, fix: str) -> NoReturn:
    raise ConfigError(where=where, given=shown(given), wrong=wrong, fix=fix)
