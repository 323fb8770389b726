"""Sharded weights (FSDP2): a sparsifier works on this rank's shard, and saves tensors placed as the weight is."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from nmlearn.groups import Grouping


def local(tensor: Tensor) -> Tensor:
    """The tensor itself, without autograd, or this rank's shard of a DTensor; shares memory."""
    tensor = tensor.detach()
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def placed(state: Mapping[str, Tensor], weight: Tensor, grouping: Grouping) -> dict[str, Tensor]:
    """The tensors of a state as DTensors placed like the weight, where the weight is one; scalars stay as they are.

    Per-weight tensors have the weight's dimensions; per-combination ones those of its groups and one more, so that the
    dimension that the weight is sharded along is theirs too.
    """
    if not hasattr(weight, "placements"):
        return dict(state)
    return {key: _placed(tensor, weight, grouping) for key, tensor in state.items()}


def _placed(tensor: Tensor, weight: Tensor, grouping: Grouping) -> Tensor:
    from torch.distributed.tensor import DTensor  # not on every build of torch, and slow to import

    if not tensor.dim() or not isinstance(weight, DTensor):
        return tensor
    shape = tuple(weight.shape)
    if tensor.dim() != weight.dim():
        shape = (*grouping.groups_shape(shape), tensor.shape[-1])
    stride = tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
    whole: Tensor = DTensor.from_local(
        tensor, weight.device_mesh, weight.placements, run_check=False, shape=torch.Size(shape), stride=stride
    )
    return whole
