"""The registered methods. Adding one is a new file and a line here; the conformance sweep then covers it."""

from __future__ import annotations

import dataclasses
import difflib
from numbers import Integral, Real
from typing import Any

from nmlearn.errors import ConfigError
from nmlearn.methods.dense import Dense
from nmlearn.methods.gradual import Gradual
from nmlearn.methods.keep import Keep
from nmlearn.methods.lbc import LBC
from nmlearn.methods.method import Method
from nmlearn.methods.oneshot import OneShot
from nmlearn.methods.srste import SRSTE
from nmlearn.pattern import Pattern

METHODS: dict[str, type[Method]] = {
    method.name: method  # in the order in which comparisons list them
    for method in (Dense, OneShot, Gradual, SRSTE, LBC, Keep)
}


def build(name: str, pattern: str | Pattern, **options: Any) -> Method:
    """A method by its registered name.

    Raises:
        ConfigError: there is no such method, or it has no such option (the nearest known name is given), or an option's
            value is of another type.
        PatternError, ScheduleError: the settings make no sense.
    """
    if name not in METHODS:
        raise _unknown("method.name", "method", name, METHODS)
    known = {field.name: field.type for field in dataclasses.fields(METHODS[name]) if field.name != "pattern"}
    for option, value in options.items():
        if option not in known:
            raise _unknown(f"method.options.{option}", f"option of {name}", option, known)
        _check_value(f"method.options.{option}", value, str(known[option]))
    return METHODS[name](pattern, **options)


def _check_value(where: str, value: Any, wanted: str) -> None:
    """Numbers must be numbers; other types are checked by the methods themselves."""
    kind = {"int": Integral, "float": Real}.get(wanted)
    if kind is not None and (isinstance(value, bool) or not isinstance(value, kind)):
        said = "a whole number" if wanted == "int" else "a number"
        raise ConfigError(where=where, given=repr(value), wrong=f"must be {said}", fix=f"give {said}")


def _unknown(where: str, what: str, name: str, known: Any) -> ConfigError:
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.0)
    return ConfigError(
        where=where,
        given=name,
        wrong=f"there is no such {what}",
        fix=f"did you mean {near[0]}? Known: {', '.join(known)}"
        if near
        else "leave it out: this method has no options",
    )
