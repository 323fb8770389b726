"""The networks that the command line trains: plain modules of ordinary Linear and Conv2d layers.

    model = nmlearn.models.build("resnet20", classes=10, input_shape=(3, 32, 32), width=32)

`MODELS` is the registry of our own; "timm:NAME", "torchvision:NAME" and "transformers:FOLDER" build with those packages
when they are installed.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable

from torch import nn

from nmlearn.errors import ConfigError
from nmlearn.models import external
from nmlearn.models.gpt import small_gpt
from nmlearn.models.resnet import resnet8, resnet18, resnet20, resnet32, resnet50
from nmlearn.models.text import text_transformer
from nmlearn.models.vit import deit_small, small_vit

__all__ = ["MODELS", "build"]

MODELS: dict[str, Callable[..., nn.Module]] = {
    "resnet8": resnet8,
    "resnet20": resnet20,
    "resnet32": resnet32,
    "resnet18": resnet18,
    "resnet50": resnet50,
    "vit": small_vit,
    "deit-small": deit_small,
    "gpt": small_gpt,
    "text-transformer": text_transformer,
}
OTHER_KINDS = {"gpt": "language", "text-transformer": "text"}  # all the rest take images


def build(
    name: str, *, classes: int, input_shape: tuple[int, ...], kind: str = "image", **options: object
) -> nn.Module:
    """A freshly initialised network (from torch's global random state) for inputs of `input_shape`.

    Args:
        name: a key of `MODELS`, or "timm:NAME", "torchvision:NAME", "transformers:FOLDER".
        classes: number of outputs; the vocabulary size for "language".
        input_shape: of one input: (C, H, W) or (T,).
        kind: the task's: "image", "text" or "language".
        options: keyword arguments of the builder; one that is None means its default.

    Returns:
        A module from float32 [b, C, H, W] or int64 [b, T] to logits [b, classes], or [b, T, classes] for "language".

    Raises:
        ConfigError: an unknown name or option, a model for another kind of data, a missing package.
    """
    chosen = {key: value for key, value in options.items() if value is not None}
    source, colon, rest = name.partition(":")
    if colon and source in external.SOURCES:
        return external.SOURCES[source](rest, classes, input_shape, kind, chosen)
    _check_name(name, kind)
    _check_options(name, chosen)
    try:
        return MODELS[name](classes, input_shape, **chosen)
    except (TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        given = f"{chosen or 'the defaults'} for {name}, inputs of shape {tuple(input_shape)} and {classes} outputs"
        wrong = f"no network can be made of this: {error}"
        raise ConfigError(where="model.options", given=given, wrong=wrong, fix="give other values") from error


def _check_name(name: str, kind: str) -> None:
    if name not in MODELS:
        near = difflib.get_close_matches(name, MODELS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        known = ", ".join([*MODELS, *(f"{source}:..." for source in external.SOURCES)])
        wrong = "no model has this name"
        raise ConfigError(where="model.name", given=repr(name), wrong=wrong, fix=f"{hint}known: {known}")
    if OTHER_KINDS.get(name, "image") != kind:
        fit = [other for other in MODELS if OTHER_KINDS.get(other, "image") == kind]
        wrong = f"takes {OTHER_KINDS.get(name, 'image')} data, and this is {kind} data"
        raise ConfigError(where="model.name", given=repr(name), wrong=wrong, fix=f"use one of {', '.join(fit)}")


def _check_options(name: str, options: dict[str, object]) -> None:
    known = option_parameters(name)
    for key, value in options.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            wrong = f"{name} has no such option"
            raise ConfigError(
                where=f"model.options.{key}", given=repr(value), wrong=wrong, fix=f"{hint}known: {', '.join(known)}"
            )
        _check_value(f"model.options.{key}", value, str(known[key].annotation).removesuffix(" | None"))


def option_parameters(name: str) -> dict[str, inspect.Parameter]:
    """The options of a model of our own, with their annotations and defaults."""
    parameters = inspect.signature(MODELS[name]).parameters
    return {key: each for key, each in parameters.items() if key not in ("classes", "input_shape")}


def _check_value(where: str, value: object, wanted: str) -> None:
    """Annotations of the builders are only int, float, str and bool, or the same or None; whole numbers are sizes."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    fits = {
        "int": isinstance(value, int) and number and value >= 1,
        "float": number,
        "str": isinstance(value, str),
        "bool": isinstance(value, bool),
    }
    if not fits.get(wanted, True):
        said = {"int": "a whole number of at least 1", "float": "a number", "str": "text", "bool": "true or false"}
        raise ConfigError(where=where, given=repr(value), wrong=f"must be {said[wanted]}", fix=f"give {said[wanted]}")
