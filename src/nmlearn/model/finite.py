"""Weights that are NaN or infinite: a model that computes nothing any more, which is no reason not to save it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping

import torch
from torch import Tensor

from nmlearn.model.shards import local

SHOWN = 6  # names that the warning lists


def warn_of_not_finite(
    tensors: Mapping[str, Tensor], weights: Mapping[str, Tensor] | None = None, stacklevel: int = 3
) -> None:
    """Warn once of all tensors with values that are not finite, by name; what is no plain floating point is left out.

    Args:
        tensors: by name, of any shape, on any device; of sharded ones this process's shard is looked at.
        weights: those of the names whose tensors are weights, None for all. Others, such as the masks of attention,
            may hold -inf.
        stacklevel: of the line that is warned of; 3 is the one that calls the caller.
    """
    found = [name for name, each in tensors.items() if _bad(local(each), weights is None or name in weights)]
    if not found:
        return
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    warnings.warn(
        f"{len(found)} of {len(tensors)} tensors have NaN or infinite values: {', '.join(map(repr, found[:SHOWN]))}"
        f"{more}. What computes with them gives NaN: go back to a checkpoint from before, and train with a lower "
        "learning rate, clipped gradients, or without the steps whose loss is not finite",
        stacklevel=stacklevel,
    )


def _bad(tensor: Tensor, is_weight: bool) -> bool:
    """Whether a value is NaN or infinite; only those of a weight may not be -inf."""
    if not (tensor.is_floating_point() or tensor.is_complex()) or tensor.layout != torch.strided:
        return False
    if tensor.is_meta or not tensor.numel():
        return False
    tensor = torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
    wide = tensor.float() if tensor.dtype.itemsize == 1 else tensor  # torch compares none of 8 bits
    low, high = map(float, wide.aminmax())  # NaN if any is; one pass, which makes no other tensor
    return not math.isfinite(high) or (not math.isfinite(low) and is_weight)
