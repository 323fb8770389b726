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
