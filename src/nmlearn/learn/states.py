"""Saved states: do they belong here, and how do they get back in place?

A state may come from a damaged file or from other code, so nothing of it is taken for granted: every part is checked
before the first is used, and a refused state has changed nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, NoReturn

import torch
from torch import Tensor

from nmlearn.errors import StateError
from nmlearn.learn.weight import SparseWeight
from nmlearn.maths import masks
from nmlearn.methods.method import DENSE, Method, Setting
from nmlearn.model.shards import local, placed

FORMAT = 1
LARGEST = 2**63  # no count of steps comes near it; Python's own integers have no end
_LONGEST = 80  # characters of a wrong value that an error shows


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
    saved: Mapping[str, Any], now: Mapping[str, Any], weights: Iterable[SparseWeight], method: Method
) -> None:
    """Check that a saved state belongs to this sparsifier, and that training comes to such values.

    Args:
        saved: what is to be loaded; anything at all may stand in it.
        now: the state of the sparsifier that is to load it.
        weights: those of the sparsifier; a schedule that has ended needs fewer tensors of a weight.
        method: says what its schedule and its tensors come to.

    Raises:
        StateError: the first difference, by name; a mask, a score or a count that is none. A dense weight that was lost
            (NaN) may be part of a state.
    """
    _check_mapping("state_dict", saved)
    for key in ("format", "method"):
        if not equal(saved.get(key), now[key]):
            _refuse(key, saved.get(key), f"this sparsifier has {now[key]}")
    _check_keys("state_dict", saved, now)
    _check_mapping("options", saved["options"])
    for key, value in {**now["options"], "total_steps": now["total_steps"]}.items():
        theirs = saved["options"].get(key, saved.get(key))
        if not equal(theirs, value):
            _refuse(key, theirs, f"this sparsifier has {value}")
    for key in ("step", "advances"):
        if not counts(saved[key]):
            _refuse(key, saved[key], "it counts something, so it is a whole number that is not negative")
    step, steps = saved["step"], saved.get("steps", [])
    if not isinstance(steps, list) or not all(counts(each) for each in steps) or min(steps, default=step) != step:
        _refuse("steps", steps, "it counts the steps of each of several optimizers, which all have done `step` of them")
    _check_weights(saved, now["weights"], weights, method)


def _check_weights(
    saved: Mapping[str, Any], ours: Mapping[str, Any], weights: Iterable[SparseWeight], method: Method
) -> None:
    theirs, step = saved["weights"], saved["step"]
    progress = min(1.0, step / saved["total_steps"])
    _check_mapping("weights", theirs)
    for name in [*theirs, *ours]:
        if name not in theirs or name not in ours:
            here = "it is dense under this sparsifier" if name in theirs else "the saved state does not have it"
            _refuse(name, "a weight of one side only", here)
    for w in weights:
        name, mine, entry = w.name, ours[w.name], theirs[w.name]
        _check_keys(name, entry, mine)
        if not equal(entry["pattern"], mine["pattern"]):
            _refuse(name, entry["pattern"], f"this sparsifier gives it {mine['pattern']}")
        value = entry["value"]
        if value is None and step:  # as a new sparsifier has it: a partial read left it there
            _refuse(name, "nothing", "the saved state does not have it")
        expected = method.setting(w.grouping.pattern, progress)
        if value is not None and not _same_setting(value, expected):
            _refuse(f"{name} value", value, f"by step {step} its schedule has come to {expected}")
        keys = needed(w.shapes, method.ended(w.grouping.pattern, value))
        _check_tensors(name, entry["state"], mine["state"], w.shapes, keys)
        _check_values(w, {key: local(entry["state"][key]) for key in keys}, value, method)


def _same_setting(saved: object, expected: Setting) -> bool:
    """Whether a saved value is that of the schedule; another machine may have rounded it otherwise."""
    if isinstance(expected, tuple):
        parts = saved if isinstance(saved, tuple) and len(saved) == len(expected) else ()
        return len(parts) == len(expected) and all(map(_same_setting, parts, expected))
    alike = measures(saved) and isinstance(saved, float) == isinstance(expected, float)
    return alike and math.isclose(saved, expected, rel_tol=1e-9, abs_tol=1e-12)  # type: ignore[arg-type]


def _check_values(w: SparseWeight, state: dict[str, Tensor], value: Setting | None, method: Method) -> None:
    """Refuse numbers that are not finite, sums of squares and counts below 0, and what the method knows to be wrong."""
    for key, tensor in state.items():
        if not tensor.is_floating_point() or key == DENSE or not tensor.numel():
            continue
        least, most = torch.aminmax(tensor)
        if not bool(torch.stack([least, most]).isfinite().all()):
            _refuse(f"{w.name} {key}", "numbers that are not finite", "the run was lost before this was saved")
        if key.endswith((".step", "_sq")) and float(least) < 0:
            _refuse(f"{w.name} {key}", f"{float(least):g}", "steps and sums of squares are not negative")
        if key.endswith(".step") and not bool((tensor == tensor.trunc()).all()):
            _refuse(f"{w.name} {key}", f"{float(least):g}", "it counts steps")
    wrong = method.impossible(replace(w.seen(), state=state, setting=value))
    if wrong:
        _refuse(w.name, "values that no training comes to", wrong)


def _check_mapping(name: str, saved: object) -> None:
    if not isinstance(saved, Mapping):
        _refuse(name, saved, "it is no mapping, so this is no state of a sparsifier")


def _check_keys(name: str, saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    _check_mapping(name, saved)
    missing = [key for key in now if key not in saved]
    if missing:
        _refuse(name, f"no {', '.join(missing)}", "a state has them, so this is none, or only a part of one")


def counts(value: object) -> bool:
    """Whether a saved value is a whole number that is not negative, of at most 63 bits."""
    return isinstance(value, int) and measures(value)


def measures(value: object) -> bool:
    """Whether a saved value is a number that is not negative, finite and less than 2**63."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < LARGEST


def needed(shapes: Mapping[str, tuple[int, ...]], ended: bool) -> list[str]:
    """The tensors that a weight's state must have: the mask alone when its schedule has ended."""
    return [key for key in shapes if key == masks.KEEP] if ended else list(shapes)


def _check_tensors(
    name: str,
    saved: Mapping[str, Tensor],
    mine: Mapping[str, Tensor],
    shapes: Mapping[str, tuple[int, ...]],
    keys: Iterable[str],
) -> None:
    _check_mapping(f"{name} state", saved)
    for key, tensor in saved.items():
        where = f"{name} {key}"
        if not isinstance(tensor, Tensor):
            _refuse(where, tensor, "it is no tensor")
        if tuple(tensor.shape) != shapes.get(key):
            have = f"has shape {shapes[key]}" if key in shapes else "has no such tensor"
            _refuse(where, f"shape {tuple(tensor.shape)}", f"this sparsifier {have}")
        _check_dtype(where, tensor, mine.get(key))
    for key in keys:
        if key not in saved:
            what = "mask" if key == masks.KEEP else key
            _refuse(f"{name} {key}", "nothing", f"the saved state has no {what} for this weight")
    if masks.KEEP in saved:
        _check_bits(f"{name} {masks.KEEP}", local(saved[masks.KEEP]))


def _check_dtype(where: str, tensor: Tensor, mine: Tensor | None) -> None:
    """Refuse another type than ours, and tensors without values. What our schedule dropped was a score or a bool."""
    if mine is not None and tensor.dtype != mine.dtype:
        _refuse(where, tensor.dtype, f"this sparsifier has {mine.dtype}")
    if mine is None and not (tensor.is_floating_point() or tensor.dtype == torch.bool):
        _refuse(where, tensor.dtype, "it is neither floating point nor bool")
    if tensor.layout != torch.strided or tensor.is_meta:
        _refuse(where, "a tensor without values" if tensor.is_meta else tensor.layout, "its values cannot be read")


def _check_bits(where: str, keep: Tensor) -> None:
    """Refuse a mask that would change bits of what it keeps."""
    if keep.numel() and not bool(((keep == 0) | (keep == -1)).all()):
        _refuse(where, "other values", "a mask is 0 for what is removed and -1 for what is kept")


def equal(saved: object, now: object) -> bool:
    """Whether a saved value equals ours: text, numbers, None or lists of them. Anything else equals nothing."""
    if isinstance(saved, list | tuple) and isinstance(now, list | tuple):
        return len(saved) == len(now) and all(map(equal, saved, now))
    plain = isinstance(saved, int | float | str | None) and isinstance(saved, bool) == isinstance(now, bool)
    return plain and saved == now


def _refuse(where: object, given: object, wrong: str) -> NoReturn:
    fix = "build the model, the method and the training length that this state was saved with"
    raise StateError(where=shown(where), given=shown(given), wrong=wrong, fix=fix)


def shown(value: object) -> str:
    """A value from a file for an error: one line, and not long."""
    if isinstance(value, int) and not -LARGEST < value < LARGEST:  # Python refuses to write the longest ones
        return "a number of more than 63 bits"
    if isinstance(value, str):
        return (value if value.isprintable() else repr(value))[:_LONGEST]
    plain = isinstance(value, int | float | torch.dtype | torch.layout | None)
    return str(value) if plain else f"a {type(value).__name__}"


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
