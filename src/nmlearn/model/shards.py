"""Sharded weights (FSDP2): a sparsifier works on this rank's shard, and saves tensors placed as the weight is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nmlearn.maths.groups import Grouping


def local(tensor: Tensor) -> Tensor:
    """The tensor itself, without autograd, or this rank's shard of a DTensor; shares memory."""
    tensor = tensor.detach()
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def shard(tensor: Tensor, weight: Tensor) -> Tensor:
    """This rank's part of a saved tensor of a weight's state, which may be whole: saved by one process, or gathered."""
    if not is_sharded(weight) or is_sharded(tensor) or not tensor.dim():
        return local(tensor)
    from torch.distributed.tensor import distribute_tensor

    whole = tensor.to(local(weight).device)
    mesh, placements = weight.device_mesh, weight.placements  # type: ignore[attr-defined]
    return local(distribute_tensor(whole, mesh, placements, src_data_rank=None))  # all ranks have it: nothing is sent


def gathered(state: Any) -> Any:
    """A state with whole tensors in place of sharded ones, for a file that one process writes; all have to call it."""
    if isinstance(state, Mapping):
        return {key: gathered(value) for key, value in state.items()}
    return state.full_tensor() if hasattr(state, "full_tensor") else state


def is_sharded(tensor: Tensor) -> bool:
    """Whether it is a DTensor: sharded or replicated over a mesh of ranks."""
    return hasattr(tensor, "placements")


def reshard(model: nn.Module) -> None:
    """Give FSDP2's modules their shards back, which an outermost one does not have after a forward without backward."""
    for module in model.modules():
        if any(kind.__name__ == "FSDPModule" for kind in type(module).__mro__):
            module.reshard()  # type: ignore[operator]


def chunks(weight: Tensor, axis: int) -> list[int]:
    """The lengths that shards of a weight have along an axis, the last and shorter one of each mesh dimension left out.

    DTensor cuts as ``torch.chunk`` does, one mesh dimension after the other; empty where nothing is cut.
    """
    lengths, length = [], weight.shape[axis]
    for ranks, placement in zip(_mesh_shape(weight), getattr(weight, "placements", ()), strict=True):
        if getattr(placement, "dim", None) == axis and ranks > 1:
            length = math.ceil(length / ranks)
            lengths.append(length)
    return lengths


def _mesh_shape(weight: Tensor) -> tuple[int, ...]:
    return tuple(weight.device_mesh.shape) if is_sharded(weight) else ()  # type: ignore[attr-defined]


def like_weight(grad: Tensor, weight: Tensor) -> Tensor:
    """A gradient placed as its weight is. One that is still to be summed over ranks is summed: one collective."""
    if is_sharded(grad) and grad.placements != weight.placements:  # type: ignore[attr-defined]
        grad = grad.redistribute(weight.device_mesh, weight.placements)  # type: ignore[attr-defined]
    return grad


def placed(state: Mapping[str, Tensor], weight: Tensor, grouping: Grouping) -> dict[str, Tensor]:
    """The tensors of a state as DTensors placed like the weight, where the weight is one; scalars stay as they are.

    Per-weight tensors have the weight's dimensions; per-combination ones those of its groups and one more, so that the
    dimension that the weight is sharded along is theirs too.
    """
    if not is_sharded(weight):
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
