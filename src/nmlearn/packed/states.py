"""What packed layers check before their state is saved or loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from nmlearn.errors import StateError


def not_recoverable(name: str, layer: nn.Module, wrong: str) -> StateError:
    """The error to raise where a layer does not know the weight that the dense layer had."""
    return StateError(
        where=name,
        given=f"a {type(layer).__name__}",
        wrong=f"the weight of the dense layer cannot be recovered: {wrong}",
        fix="save the model before accelerating it",
    )


def loads_whole(layer: nn.Module, state: Mapping[str, Any], prefix: str, strict: bool, *found: list[str]) -> bool:
    """Whether a layer can load all of a state: a refused one then copies nothing, not some of its tensors.

    Args:
        layer: has buffers and ``misplaced``.
        state, prefix, strict: as ``_load_from_state_dict`` has them.
        found: its lists of missing keys, of unexpected keys, and of errors; what is wrong is added.
    """
    own = {prefix + key: buffer for key, buffer in layer.named_buffers(recurse=False)}
    given = {key: tensor for key, tensor in state.items() if key.startswith(prefix)}
    missing = [key for key in own if key not in given] if strict else []
    unexpected = [key for key in given if key not in own] if strict else []
    errors = [_size_mismatch(key, given[key], own[key]) for key in own if key in given]
    errors = [error for error in errors if error]
    if not errors and (why := layer.misplaced({key.removeprefix(prefix): given[key] for key in given})):  # type: ignore[operator]
        errors = [f"{prefix}index: {why}"]
    for known, more in zip(found, (missing, unexpected, errors), strict=True):
        known += more
    return not (missing or unexpected or errors)


def _size_mismatch(key: str, given: object, own: Tensor) -> str:
    if isinstance(given, Tensor) and given.shape == own.shape:
        return ""
    shape = list(given.shape) if isinstance(given, Tensor) else type(given).__name__
    return f"size mismatch for {key}: given {shape}, this layer has {list(own.shape)}; pack it as the saved one was"


def misplaced(weight: str) -> str:
    """What is wrong with an index of another pattern's weight, whose shape may be the same."""
    return (
        f"given an index that names inputs outside their groups: it is not the index of a {weight}; "
        "pack this layer as the saved one was"
    )
