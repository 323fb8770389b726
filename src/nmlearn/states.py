"""Saved states: do they belong here, and how do they get back in place?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor

from nmlearn.errors import StateError

FORMAT = 1


def check_same(saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Check that a saved state belongs to this sparsifier.

    Args:
        saved: what is to be loaded.
        now: the state of the sparsifier that is to load it.

    Raises:
        StateError: the first difference, by name.
    """
    for key in ("format", "method", "options", "total_steps"):
        if saved.get(key) != now[key]:
            _refuse(key, saved.get(key), f"this sparsifier has {now[key]}")
    theirs, ours = saved["weights"], now["weights"]
    for name in [*theirs, *ours]:
        if name not in theirs or name not in ours:
            here = "this sparsifier does not take it" if name in theirs else "the saved state does not have it"
            _refuse(name, "a weight of one side only", here)
    for name, mine in ours.items():
        _check_weight(name, theirs[name], mine)


def _check_weight(name: str, saved: Mapping[str, Any], mine: Mapping[str, Any]) -> None:
    if saved["pattern"] != mine["pattern"]:
        _refuse(name, saved["pattern"], f"this sparsifier gives it {mine['pattern']}")
    for key, tensor in saved["state"].items():
        expected = mine["state"].get(key)
        if expected is None or expected.shape != tensor.shape:
            shape = "no such tensor" if expected is None else f"shape {tuple(expected.shape)}"
            _refuse(f"{name} {key}", f"shape {tuple(tensor.shape)}", f"this sparsifier has {shape}")


def _refuse(where: str, given: object, wrong: str) -> NoReturn:
    fix = "build the model, the method and the training length that this state was saved with"
    raise StateError(where=where, given=given, wrong=wrong, fix=fix)


def placed(saved: Mapping[str, Tensor], weight: Tensor) -> dict[str, Tensor]:
    """Own copies of saved tensors, beside the weight: per-weight ones in its memory layout, the others contiguous."""
    return {
        key: torch.empty_like(weight, dtype=tensor.dtype).copy_(tensor)
        if tensor.shape == weight.shape
        else tensor.to(weight.device if tensor.dim() else "cpu", copy=True).contiguous()
        for key, tensor in saved.items()
    }
