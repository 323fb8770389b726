"""The registered methods. Adding one is a new file and a line here: names, help, tables and the sweep follow."""

from __future__ import annotations

import dataclasses
from typing import Any

from nmlearn.errors import check_name
from nmlearn.maths.pattern import Pattern
from nmlearn.methods.method import Method as Method

# The registry, in the order in which comparisons list the methods.
# isort: off
from nmlearn.methods.dense import Dense as Dense
from nmlearn.methods.oneshot import OneShot as OneShot
from nmlearn.methods.wanda import Wanda as Wanda
from nmlearn.methods.ria import RIA as RIA
from nmlearn.methods.sparsegpt import SparseGPT as SparseGPT
from nmlearn.methods.alps import ALPS as ALPS
from nmlearn.methods.dsnot import DSnoT as DSnoT
from nmlearn.methods.r2dsnot import R2DSnoT as R2DSnoT
from nmlearn.methods.gradual import Gradual as Gradual
from nmlearn.methods.admm import ADMM as ADMM
from nmlearn.methods.srste import SRSTE as SRSTE
from nmlearn.methods.sste import SSTE as SSTE
from nmlearn.methods.step import STEP as STEP
from nmlearn.methods.cast import CAST as CAST
from nmlearn.methods.decaying import MdGf as MdGf, SdGf as SdGf
from nmlearn.methods.maxq import MaxQ as MaxQ
from nmlearn.methods.bimask import BiMask as BiMask
from nmlearn.methods.tsrste import TSRSTE as TSRSTE
from nmlearn.methods.maskllm import MaskLLM as MaskLLM
from nmlearn.methods.lbc import LBC as LBC
from nmlearn.methods.keep import Keep as Keep
# isort: on

METHODS: dict[str, type[Method]] = {
    kind.name: kind
    for kind in list(globals().values())
    if isinstance(kind, type) and issubclass(kind, Method) and kind is not Method
}


def build(name: str, pattern: str | Pattern, **options: Any) -> Method:
    """A method by its registered name.

    Raises:
        ConfigError: there is no such method, or it has no such option (the nearest known name is given), or an option's
            value is of another type.
        PatternError, ScheduleError: the settings make no sense.
    """
    check_name("method.name", name, METHODS, "method")
    known = [field.name for field in dataclasses.fields(METHODS[name]) if field.name != "pattern"]
    for option in options:
        where = f"method.options.{option}"
        check_name(where, option, known, f"option of {name}", fix="leave it out: this method has no options")
    return METHODS[name](pattern, **options)
