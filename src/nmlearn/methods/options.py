"""How methods refuse a setting, by the name that it has in recipes."""

from __future__ import annotations

from typing import NoReturn

from nmlearn.errors import ConfigError

PREFIX = "method.options."


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
