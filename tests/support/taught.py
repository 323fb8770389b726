"""A teacher for the tests of distillation, of the language model of the tests of calibration; and what ranks run."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import nmlearn as nm
from calibration_models import Language, tokens

LAYERS = {"layers.*": 1.0}
MASK = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0]])


def other(model: nn.Module, seed: int = 1) -> nn.Module:
    """The same network with other weights."""
    twin, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    for p in twin.parameters():
        p.data += 0.1 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    return twin


def trained(kind: str, teacher: str) -> dict[str, Tensor]:
    """The whole weights after a few steps with LBC, alone ("") or on every rank, all of which have the same batches."""
    model = Language()
    given = other(model) if teacher == "other" else "copy"
    distillation = nm.Distillation(given, hidden=LAYERS, logits=1.0)
    if teacher == "copy":
        distillation.attach(model)
    if kind == "fsdp":
        for layer in model.layers:
            fully_shard(layer)
        fully_shard(model)
    run = DistributedDataParallel(model) if kind == "ddp" else model
    if teacher == "other":
        distillation.attach(run)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    sparsifier = nm.Sparsifier(run, nm.LBC("2:4")).attach(optimizer, 4)
    for seed in range(4):
        optimizer.zero_grad()
        (run(tokens(seed=seed), MASK).square().mean() + distillation.loss()).backward()
        optimizer.step()
    sparsifier.finalize()
    weights = {name: p.detach() for name, p in model.named_parameters()}
    return {name: w.full_tensor() if hasattr(w, "full_tensor") else w for name, w in weights.items()}
