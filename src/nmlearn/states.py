"""Saved states: do they belong here, and how do they get back in place?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor

from nmlearn.errors import StateError

FORMAT = 1


def check_same(
    saved: Mapping[str, Any], now: Mapping[str, Any], shapes: Mapping[str, Mapping[str, tuple[int, ...]]]
) -> None:
    """Check that a saved state belongs to this sparsifier.

    Args:
        saved: what is to be loaded.
        now: the state of the sparsifier that is to load it.
        shapes: of the tensors that each weight's state may have; a schedule that has ended needs fewer of them.

    Raises:
        StateError: the first difference, by name.
    """
    for key in ("format", "method"):
        if saved.get(key) != now[key]:
            _refuse(key, saved.get(key), f"this sparsifier has {now[key]}")
    _check_keys("state_dict", saved, now)
    for key, value in {**now["options"], "total_steps": now["total_steps"]}.items():
        theirs = saved["options"].get(key, saved.get(key))
        if theirs != value:
            _refuse(key, theirs, f"this sparsifier has {value}")
    theirs, ours = saved["weights"], now["weights"]
    for name in [*theirs, *ours]:
        if name not in theirs or name not in ours:
            here = "this sparsifier does not take it" if name in theirs else "the saved state does not have it"
            _refuse(name, "a weight of one side only", here)
    for name, mine in ours.items():
        _check_keys(name, theirs[name], mine)
        if theirs[name]["pattern"] != mine["pattern"]:
            _refuse(name, theirs[name]["pattern"], f"this sparsifier gives it {mine['pattern']}")
        _check_tensors(name, theirs[name]["state"], shapes[name])
        for key, tensor in theirs[name]["state"].items():
            if key in mine["state"] and tensor.dtype != mine["state"][key].dtype:
                _refuse(f"{name} {key}", tensor.dtype, f"this sparsifier has {mine['state'][key].dtype}")


def _check_keys(name: str, saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    missing = [key for key in now if key not in saved]
    if missing:
        _refuse(name, f"no {', '.join(missing)}", "a state has them, so this is none, or only a part of one")


def _check_tensors(name: str, saved: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
    for key, tensor in saved.items():
        if tuple(tensor.shape) != shapes.get(key):
            have = f"has shape {shapes[key]}" if key in shapes else "has no such tensor"
            _refuse(f"{name} {key}", f"shape {tuple(tensor.shape)}", f"this sparsifier {have}")
    if "keep" in shapes and "keep" not in saved:
        _refuse(f"{name} keep", "nothing", "the saved state has no mask for this weight")


def _refuse(where: str, given: object, wrong: str) -> NoReturn:
    fix = "build the model, the method and the training length that this state was saved with"
    raise StateError(where=where, given=given, wrong=wrong, fix=fix)


def copied(saved: Mapping[str, Tensor], weight: Tensor) -> dict[str, Tensor]:
    """Own copies of saved tensors, beside the weight: per-weight ones in its memory layout, the others contiguous."""
    return {
        key: torch.empty_like(weight, dtype=tensor.dtype).copy_(tensor)
        if tensor.shape == weight.shape
        else tensor.to(weight.device if tensor.dim() else "cpu", copy=True).contiguous()
        for key, tensor in saved.items()
    }
