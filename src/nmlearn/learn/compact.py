"""A sparsifier's state for files: masks and other yes-or-no tensors as bits, eight to a byte."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from nmlearn.errors import StateError
from nmlearn.learn.states import FORMAT, equal, shown
from nmlearn.maths import masks

PACKED_FORMAT = 2


def packed(state: Mapping[str, Any]) -> dict[str, Any]:
    """The state with its tensors of bits packed; the others, and where all lie, stay as they are."""
    return {**_mapped(state, _pack), "format": PACKED_FORMAT}


def unpacked(saved: Mapping[str, Any]) -> Mapping[str, Any]:
    """The state that was packed; one that is not is given back as it is.

    Raises:
        StateError: bits that are none, or of another number than their shape says.
    """
    if not isinstance(saved, Mapping) or not equal(saved.get("format"), PACKED_FORMAT):
        return saved
    try:
        return {**_mapped(saved, _unpack), "format": FORMAT}
    except Exception as error:  # whatever stands there in place of a state
        raise StateError(
            where="load_state_dict",
            given="a state with packed masks",
            wrong=f"they cannot be read: {type(error).__name__}: {shown(str(error))}",
            fix="load a state as it was saved",
        ) from error


def _mapped(state: Mapping[str, Any], change: Callable[[str, Any], Any]) -> dict[str, Any]:
    """The state with its tensors changed; what is none of a weight is left for the check that names it."""

    def changed(entry: Any) -> Any:
        tensors = entry.get("state") if isinstance(entry, Mapping) else None
        if not isinstance(tensors, Mapping):
            return entry
        return {**entry, "state": {key: change(key, tensor) for key, tensor in tensors.items()}}

    weights = state.get("weights")
    if not isinstance(weights, Mapping):
        return {**state}
    return {**state, "weights": {name: changed(entry) for name, entry in weights.items()}}


def _pack(key: str, tensor: Tensor) -> Tensor | dict[str, Any]:
    if type(tensor) is not Tensor or (key != masks.KEEP and tensor.dtype != torch.bool):
        return tensor
    set_b = (tensor != 0).reshape(-1)
    rows = torch.nn.functional.pad(set_b, (0, -set_b.numel() % 8)).view(-1, 8)
    bits = (rows * _places(rows.device)).sum(1, dtype=torch.uint8)
    return {"bits": bits, "shape": list(tensor.shape)}


def _unpack(key: str, given: Any) -> Any:
    if not isinstance(given, Mapping):
        return given
    shape, bits = torch.Size(given["shape"]), given["bits"]
    if bits.dtype != torch.uint8 or bits.shape != (-(-shape.numel() // 8),):
        raise ValueError(f"{bits.dtype} {list(bits.shape)} for a shape of {list(shape)}")
    set_b = (bits[:, None] & _places(bits.device)).ne(0).view(-1)[: shape.numel()].view(shape)
    return masks.bits(set_b) if key == masks.KEEP else set_b


def _places(device: torch.device) -> Tensor:
    return torch.tensor([1 << place for place in range(8)], dtype=torch.uint8, device=device)
