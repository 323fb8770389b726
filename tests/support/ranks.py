"""What the ranks of the distributed tests run; a module of its own so that their processes can import it."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import nmlearn as nm
from nets import batches, convnet, sgd
from nmlearn.model.names import unwrap

STEPS, SIZE = 16, 12


def one_process(method: nm.Method) -> dict[str, torch.Tensor]:
    """The reference: the whole batch on one process. Batch norm as in evaluation, which couples no examples."""
    model = convnet().eval()
    optimizer = sgd(model)
    nm.Sparsifier(model, method).attach(optimizer, STEPS)
    for x, y in batches(STEPS, size=SIZE):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def resumed(old: nm.Sparsifier, run: torch.nn.Module, optimizer: torch.optim.Optimizer, sharded: bool) -> nm.Sparsifier:
    """Another sparsifier that goes on where the old one stood, from a state placed as the weights are."""
    saved = old.state_dict()
    old.detach()
    for name, entry in saved["weights"].items():
        weight = dict(unwrap(run).named_parameters())[name]
        for tensor in entry["state"].values():
            cut = sharded and tensor.dim() > 0
            assert hasattr(tensor, "placements") == cut
            assert not cut or (tensor.placements == weight.placements and tensor.shape[0] == weight.shape[0])
    new = nm.Sparsifier(run, old.method).attach(optimizer, STEPS, travels=False)
    new.load_state_dict(saved)
    assert new.step == STEPS // 2
    return new


def trained(kind: str, method: nm.Method) -> dict[str, torch.Tensor]:
    """This rank's share of every batch, under DDP or FSDP2; the whole weights."""
    number, world = dist.get_rank(), dist.get_world_size()
    model = convnet().eval()
    if kind == "fsdp":
        for part in (model.conv, model.grouped, model.hidden):
            fully_shard(part)
        fully_shard(model)
    run = DistributedDataParallel(model) if kind == "ddp" else model
    optimizer = sgd(model)
    sparsifier = nm.Sparsifier(run, method).attach(optimizer, STEPS)
    for step, (x, y) in enumerate(batches(STEPS, size=SIZE)):
        if step == STEPS // 2:
            sparsifier = resumed(sparsifier, run, optimizer, sharded=kind == "fsdp")
        optimizer.zero_grad()
        F.cross_entropy(run(x.chunk(world)[number]), y.chunk(world)[number]).backward()
        for name, mask in sparsifier.masks().items():  # as on one process: no gradient where nothing is left
            grad = dict(model.named_parameters())[name].grad
            grad = grad.to_local() if hasattr(grad, "to_local") else grad
            assert type(method).dense_gradient or not grad[~mask].any()
        optimizer.step()
    weights = {name: p.detach() for name, p in model.named_parameters()}
    whole = {name: w.full_tensor() if hasattr(w, "full_tensor") else w for name, w in weights.items()}
    sparsifier.finalize()
    return whole
