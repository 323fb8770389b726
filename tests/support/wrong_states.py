"""Saved states, which are nested mappings and lists of tensors and numbers, with one thing that is wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from hypothesis import strategies as st

GONE = object()  # stands for a key that is missing
WRONG: list[Any] = [GONE, None, True, [], {}, (), "", "x", "2:4", -1, 0, 1, 3, 10**30, 10**5000, 0.5, -0.5]
WRONG += [float("nan"), float("inf"), [None], {"a": 1}, {3: 4}, b"x", 1j]
TENSORS: list[Callable[[], torch.Tensor]] = [
    lambda: torch.zeros(()),
    lambda: torch.zeros(2, 2, dtype=torch.complex64),
    lambda: torch.tensor([1, 2]),
    lambda: torch.zeros(3, 4).to_sparse(),
    lambda: torch.empty(3, device="meta"),
]


def with_one_change(state: Any, data: st.DataObject) -> Any:
    """A copy of a state in which one value, anywhere, is missing or another."""
    place = data.draw(st.sampled_from(list(places(state))))
    was = state
    for key in place:
        was = was[key]
    value = like(was, data) if data.draw(st.booleans()) else data.draw(st.sampled_from(WRONG))
    return changed(state, place, value)


def places(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The keys of every value within nested mappings and lists."""
    yield above
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from places(value[key], (*above, key))


def changed(state: Any, place: tuple[Any, ...], value: Any) -> Any:
    """A copy of nested mappings and lists with another value at one place, or with none."""
    if not place:
        return value if value is not GONE else {}
    copied = state.copy()
    if len(place) == 1 and value is GONE:
        del copied[place[0]]
    else:
        copied[place[0]] = changed(copied[place[0]], place[1:], value)
    return copied


def like(tensor: Any, dice: Any) -> Any:
    """Of its shape and another type, or of its type and another shape, or with other values."""
    if not isinstance(tensor, torch.Tensor):
        return dice.draw(st.sampled_from(TENSORS))()
    kind = dice.draw(st.sampled_from(["type", "shape", "values", "odd", "lost"]))
    if kind == "type":
        return tensor.to(dice.draw(st.sampled_from([torch.float64, torch.bool, torch.int64, torch.bfloat16])))
    if kind == "shape":
        return dice.draw(st.sampled_from([tensor[..., None], tensor.flatten()[:-1], tensor.flatten()]))
    if kind == "odd":
        return dice.draw(st.sampled_from(TENSORS))()
    if kind == "lost" and tensor.is_floating_point():
        return torch.full_like(tensor, float("nan"))
    return torch.full_like(tensor, 5)
