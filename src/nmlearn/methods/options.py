"""How methods refuse a setting, by the name that it has in recipes."""

from __future__ import annotations

from typing import ClassVar, NoReturn, Protocol

from nmlearn.errors import ConfigError, ScheduleError

PREFIX = "method.options."
_MOST = 1_000_000


def refuse(option: str, given: object, wrong: str, fix: str) -> NoReturn:
    """Refuse the setting of an option.

    Raises:
        ConfigError: always.
    """
    raise ConfigError(where=f"{PREFIX}{option}", given=given, wrong=wrong, fix=fix)


def check_not_negative(method: object, *options: str) -> None:
    """Refuse numbers below 0.

    Raises:
        ConfigError: it names the first.
    """
    for option in options:
        given = getattr(method, option)
        if given is not None and given < 0:
            refuse(option, given, "it cannot be negative", "leave it out")


def check_count(method: object, option: str, what: str) -> None:
    """Refuse a number of what follows one another in a training run that is not between 1 and a million.

    Args:
        what: there is one of at least, as the error says it.

    Raises:
        ConfigError: it names the option.
    """
    given = getattr(method, option)
    if not 1 <= given <= _MOST:
        fix = f"write {getattr(type(method), option)}"
        refuse(option, given, f"{what}, at least one and at most {_MOST:,}", fix)


class Spanning(Protocol):
    """A method with a schedule between two shares of training."""

    name: ClassVar[str]

    @property
    def start(self) -> float: ...
    @property
    def end(self) -> float: ...


def check_span(method: Spanning) -> None:
    """Refuse settings ``start`` and ``end`` that are not in [0, 1], in this order.

    Raises:
        ScheduleError: it names both.
    """
    if not 0.0 <= method.start <= method.end <= 1.0:
        raise ScheduleError(
            where=method.name,
            given=f"start={method.start}, end={method.end}",
            wrong="progress lies in [0, 1], and a schedule cannot end before it starts",
            fix=f"write start=0, end={type(method).end}",
        )


def check_adam(method: object) -> None:
    """Refuse settings ``beta1``, ``beta2``, ``eps`` and ``weight_decay`` that Adam cannot have.

    Raises:
        ConfigError: it names the first.
    """
    for option in ("beta1", "beta2", "eps"):
        given = getattr(method, option)
        if option != "eps" and not 0.0 <= given < 1.0:
            refuse(option, given, "a moment keeps a share in [0, 1)", "leave it out")
        if option == "eps" and not given > 0.0:
            refuse(option, given, "it keeps roots of zero from dividing, so it is above 0", "write 1e-8")
    check_not_negative(method, "weight_decay")
