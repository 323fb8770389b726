"""Noticing that a model is wrapped in DistributedDataParallel behind the sparsifier's back.

Wrapping gives every rank the weights of the first. Masks, scores and dense weights that were made from the weights
before stay as they are, so that the replicas would drift apart and nobody would hear of it. The wrapper is refused
where it is made, on every rank and before it sends anything: nothing has to be compared over ranks.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterable
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook

from nmlearn.errors import AttachError


def hooks(sparsifier: Any, model: nn.Module, weights: Iterable[Tensor]) -> list[Any]:
    """A hook on the making of wrappers, as long as it is not removed; none where the model is wrapped already.

    Args:
        sparsifier: who holds the weights; held weakly.
        model: as the sparsifier was given it.
        weights: those with a state.

    Raises:
        AttachError: from then on, by ``DistributedDataParallel(...)`` over several ranks, of a module with these.
    """
    if not dist.is_available() or _wraps(model):
        return []
    owner, held = weakref.ref(sparsifier), {id(weight) for weight in weights}

    def hook(parent: nn.Module, name: str, child: nn.Module | None) -> None:
        if child is None or not _wraps(parent) or parent.process_group.size() == 1:  # type: ignore[operator]
            return
        if any(id(parameter) in held for parameter in child.parameters()):
            gc.collect()  # one that is forgotten may wait in a cycle
            if owner() is not None:
                _refuse()

    return [register_module_module_registration_hook(hook)]


def _wraps(module: nn.Module) -> bool:
    return isinstance(module, nn.parallel.DistributedDataParallel)


def _refuse() -> None:
    raise AttachError(
        where="DistributedDataParallel",
        given="a model that a sparsifier is attached to",
        wrong="it gives every rank the weights of the first, and the masks and scores belong to other ones",
        fix="wrap the model in DistributedDataParallel first, then make the sparsifier and attach",
    )
