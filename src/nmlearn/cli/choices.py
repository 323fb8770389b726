"""The available names and options, read from the code that accepts them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

Row = tuple[bool | None, str, str]


def models() -> Iterator[Row]:
    """Our own models and the sources of others, each with its options and their defaults."""
    from nmlearn.lab.models import MODELS, external, option_parameters

    for name in MODELS:
        options = {key: each.default for key, each in option_parameters(name).items()}
        yield None, name, _said(options)
    for source, builder in external.SOURCES.items():
        yield None, f"{source}:...", (builder.__doc__ or "").splitlines()[0]


def methods() -> Iterator[Row]:
    """The methods, each with its options and their defaults."""
    from nmlearn.methods import METHODS

    for name, kind in METHODS.items():
        yield None, name, of_dataclass(kind)


def of_dataclass(kind: type) -> str:
    """The fields that have a default."""
    fields: tuple[Any, ...] = dataclasses.fields(kind)
    return _said({field.name: field.default for field in fields if field.default is not dataclasses.MISSING})


def _said(options: dict[str, Any]) -> str:
    """Names and defaults, as YAML spells them."""
    return ", ".join(f"{key}={_yaml(value)}" for key, value in options.items()) or "no options"


def _yaml(value: object) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
