"""The registered methods. Adding one is a new file and a line here; the conformance sweep then covers it."""

from __future__ import annotations

import dataclasses
from typing import Any

from nmlearn.errors import check_name, check_type
from nmlearn.maths.pattern import Pattern
from nmlearn.methods.dense import Dense
from nmlearn.methods.gradual import Gradual
from nmlearn.methods.keep import Keep
from nmlearn.methods.lbc import LBC
from nmlearn.methods.method import Method
from nmlearn.methods.oneshot import OneShot
from nmlearn.methods.srste import SRSTE

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
    check_name("method.name", name, METHODS, "method")
    known = {field.name: str(field.type) for field in dataclasses.fields(METHODS[name]) if field.name != "pattern"}
    for option, value in options.items():
        where = f"method.options.{option}"
        check_name(where, option, known, f"option of {name}", fix="leave it out: this method has no options")
        check_type(where, value, known[option])
    return METHODS[name](pattern, **options)
