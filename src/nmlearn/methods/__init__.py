"""The registered methods. Adding one is a new file and a line here; the conformance sweep then covers it."""

from __future__ import annotations

import dataclasses
import difflib
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
        ConfigError: there is no such method, or it has no such option; the nearest known name is given.
        PatternError, ScheduleError: the settings make no sense.
    """
    if name not in METHODS:
        raise _unknown("method", name, METHODS)
    known = [field.name for field in dataclasses.fields(METHODS[name]) if field.name != "pattern"]
    for option in options:
        if option not in known:
            raise _unknown(f"option of {name}", option, known)
    return METHODS[name](pattern, **options)


def _unknown(what: str, name: str, known: Any) -> ConfigError:
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.0)
    return ConfigError(
        where="method",
        given=name,
        wrong=f"there is no such {what}",
        fix=f"did you mean {near[0]}? Known: {', '.join(known)}" if near else f"{what} has no options",
    )
