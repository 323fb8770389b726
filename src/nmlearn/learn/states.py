"""Saved states: do they belong here, and how do they get back in place?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor

from nmlearn.errors import StateError
from nmlearn.learn.weight import SparseWeight
from nmlearn.maths.pattern import Pattern
from nmlearn.methods.method import Method
from nmlearn.model.shards import placed

FORMAT = 1


def saved(
    method: Method, total_steps: int, step: int, advances: int, weights: Iterable[SparseWeight]
) -> dict[str, Any]:
    """A sparsifier's state: tensors by the weights' qualified names, text and numbers."""
    return {
        "format": FORMAT,
        "method": method.name,
        "options": method.describe(),
        "total_steps": total_steps,
        "step": step,
        "advances": advances,
        "weights": {
            w.name: {
                "pattern": str(w.grouping.pattern),
                "value": w.setting,
                "state": placed(w.state, w.parameter, w.grouping),
            }
            for w in weights
        },
    }


def check_same(
    saved: Mapping[str, Any],
    now: Mapping[str, Any],
    shapes: Mapping[str, Mapping[str, tuple[int, ...]]],
    ended: Callable[[Pattern, Any], bool],
) -> None:
    """Check that a saved state belongs to this sparsifier.

    Args:
        saved: what is to be loaded.
        now: the state of the sparsifier that is to load it.
        shapes: of the tensors that each weight's state may have; a schedule that has ended needs fewer of them.
        ended: whether a pattern's schedule has, at a saved value.

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
            here = "it is dense under this sparsifier" if name in theirs else "the saved state does not have it"
            _refuse(name, "a weight of one side only", here)
    for name, mine in ours.items():
        _check_keys(name, theirs[name], mine)
        if theirs[name]["pattern"] != mine["pattern"]:
            _refuse(name, theirs[name]["pattern"], f"this sparsifier gives it {mine['pattern']}")
        value = theirs[name]["value"]
        if value is None and saved["step"]:  # as a new sparsifier has it: a partial read left it there
            _refuse(name, "nothing", "the saved state does not have it")
        _check_tensors(name, theirs[name]["state"], shapes[name], ended(Pattern(mine["pattern"]), value))
        for key, tensor in theirs[name]["state"].items():
            if key in mine["state"] and tensor.dtype != mine["state"][key].dtype:
                _refuse(f"{name} {key}", tensor.dtype, f"this sparsifier has {mine['state'][key].dtype}")


def _check_keys(name: str, saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    missing = [key for key in now if key not in saved]
    if missing:
        _refuse(name, f"no {', '.join(missing)}", "a state has them, so this is none, or only a part of one")


def needed(shapes: Mapping[str, tuple[int, ...]], ended: bool) -> list[str]:
    """The tensors that a weight's state must have: the mask alone when its schedule has ended."""
    return [key for key in shapes if key == "keep"] if ended else list(shapes)


def _check_tensors(name: str, saved: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], ended: bool) -> None:
    for key, tensor in saved.items():
        if tuple(tensor.shape) != shapes.get(key):
            have = f"has shape {shapes[key]}" if key in shapes else "has no such tensor"
            _refuse(f"{name} {key}", f"shape {tuple(tensor.shape)}", f"this sparsifier {have}")
    for key in needed(shapes, ended):
        if key not in saved:
            what = "mask" if key == "keep" else key
            _refuse(f"{name} {key}", "nothing", f"the saved state has no {what} for this weight")


def _refuse(where: str, given: object, wrong: str) -> NoReturn:
    fix = "build the model, the method and the training length that this state was saved with"
    raise StateError(where=where, given=given, wrong=wrong, fix=fix)


def refuse_unattached() -> NoReturn:
    """Refuse to load a state into a sparsifier that has none."""
    raise StateError(
        where="load_state_dict",
        given="a sparsifier that is not attached",
        wrong="its state is made by attach",
        fix="call attach(optimizer, total_steps) first",
    )


def copied(saved: Mapping[str, Tensor], weight: Tensor) -> dict[str, Tensor]:
    """Copies of saved tensors, on the weight's device: per-weight ones in its memory layout, the others contiguous."""
    return {
        key: torch.empty_like(weight, dtype=tensor.dtype).copy_(tensor)
        if tensor.shape == weight.shape
        else tensor.to(weight.device if tensor.dim() else "cpu", copy=True).contiguous()
        for key, tensor in saved.items()
    }
