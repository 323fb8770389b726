"""The networks of the command line: plain modules with ordinary Linear and Conv2d layers.

    model = nmlearn.lab.models.build("resnet20", classes=10, input_shape=(3, 32, 32), width=32)

`MODELS` is the registry of our own models; "timm:NAME", "torchvision:NAME", "transformers:FOLDER" and
"efficientnet_lite_pytorch:NAME" use those packages if installed.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable

from torch import nn

from nmlearn.errors import ConfigError, check_name, check_type
from nmlearn.lab.models import external
from nmlearn.lab.models.gpt import small_gpt
from nmlearn.lab.models.resnet import resnet8, resnet18, resnet20, resnet32, resnet50
from nmlearn.lab.models.text import text_transformer
from nmlearn.lab.models.vit import deit_small, small_vit

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
    """A newly initialised network (from torch's global random state) for inputs of `input_shape`.

    Args:
        name: a key of `MODELS`, or a model of another package, such as "timm:NAME".
        classes: number of outputs; the vocabulary size for "language".
        input_shape: of one input: (C, H, W) or (T,).
        kind: the task's: "image", "text", "language" or "detection".
        options: keyword arguments of the builder; one that is None means its default.

    Returns:
        A module from float32 [b, C, H, W] or int64 [b, T] to logits [b, classes], or [b, T, classes] for "language".

    Raises:
        ConfigError: an unknown name or option, a model for another kind of data, or a missing package.
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
        wrong = f"no network can be built from this: {error}"
        raise ConfigError(where="model.options", given=given, wrong=wrong, fix="give other values") from error


def _check_name(name: str, kind: str) -> None:
    check_name("model.name", name, [*MODELS, *(f"{source}:..." for source in external.SOURCES)], "model")
    if OTHER_KINDS.get(name, "image") != kind:
        fit = [other for other in MODELS if OTHER_KINDS.get(other, "image") == kind]
        wrong = f"takes {OTHER_KINDS.get(name, 'image')} data, but this is {kind} data"
        fix = f"use one of {', '.join(fit)}" if fit else external.DETECTORS
        raise ConfigError(where="model.name", given=repr(name), wrong=wrong, fix=fix)


def _check_options(name: str, options: dict[str, object]) -> None:
    known = option_parameters(name)
    for key, value in options.items():
        where = f"model.options.{key}"
        check_name(where, key, known, f"option of {name}")
        annotation = str(known[key].annotation)
        check_type(where, value, annotation)
        if annotation.startswith("int") and isinstance(value, int) and value < 1:
            raise ConfigError(where=where, given=repr(value), wrong="not a size", fix="give at least 1")


def option_parameters(name: str) -> dict[str, inspect.Parameter]:
    """The options of one of our own models, with their annotations and defaults."""
    parameters = inspect.signature(MODELS[name]).parameters
    return {key: each for key, each in parameters.items() if key not in ("classes", "input_shape")}
