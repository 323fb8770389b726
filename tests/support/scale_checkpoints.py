"""What the ranks of the tests of scale run: checkpoints by torch.distributed.checkpoint, and what is refused."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.nn.functional as F
from torch import nn
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor.parallel import RowwiseParallel, parallelize_module

import nmlearn as nm
from nets import sgd
from nmlearn.errors import AttachError
from scale_ranks import METHODS, RULES, STEPS, WAYS, Blocks, Run, attached, blocks, data, fsdp, one, result

SAVED = (1, 5, 12)  # at the start, amid the schedule, and behind its end


def saved_on_the_way(way: str, method: str, folder: Path) -> dict[str, Any]:
    """An uninterrupted training that leaves checkpoints behind, one of them written while training goes on."""
    run = WAYS[way]()
    sparsifier, pending = attached(run, METHODS[method]), None
    apart = dist.new_group() if dist.is_initialized() else None  # or its collectives would meet those of training
    for step, (x, y) in enumerate(data()):
        if step in SAVED:
            model, optimizer = get_state_dict(run.model, run.optimizer)
            parts = {"model": model, "optimizer": optimizer, "sparsifier": sparsifier.state_dict()}
            if step == 5 and apart:
                pending = dcp.async_save(parts, checkpoint_id=folder / str(step), process_group=apart)
            else:
                dcp.save(parts, checkpoint_id=folder / str(step), no_dist=not dist.is_initialized())
        run.step(x, y)
    if pending:
        pending.result()
    return result(run, sparsifier) | {"bytes": sparsifier.state_bytes()}


def resumed(way: str, method: str, folder: Path, step: int) -> dict[str, Any]:
    """Go on from a checkpoint to the end, on however many ranks."""
    run = one() if way == "one" else WAYS[way]()
    with torch.no_grad():
        for parameter in run.model.parameters():
            parameter.zero_()  # whatever is right afterwards was read
    sparsifier = attached(run, METHODS[method])
    read(run, sparsifier, folder / str(step))
    assert sparsifier.step == step
    for x, y in data()[step:]:
        run.step(x, y)
    found = result(run, sparsifier) | {"bytes": sparsifier.state_bytes()}
    sparsifier.finalize()
    return found


def overflow() -> list[int]:
    """A gradient that is infinite in one rank's shard alone: no rank may count the step."""
    run, scaler, counts = fsdp(), torch.amp.GradScaler("cpu", init_scale=16.0), []
    sparsifier = attached(run, nm.LBC("2:4"))
    for step, (x, y) in enumerate(data()[:4]):
        run.optimizer.zero_grad()
        scaler.scale(F.cross_entropy(run.forward(run.share(x)), run.share(y))).backward()
        if step == 2 and dist.get_rank() == 0:
            run.model.stem.weight.grad.to_local()[0, 0] = torch.inf
        scaler.step(run.optimizer)
        scaler.update()
        counts.append(sparsifier.step)
    return counts


def read(run: Run, sparsifier: nm.Sparsifier, folder: Path) -> None:
    """As docs/scale.md says."""
    alone = not dist.is_initialized()
    model, optimizer = get_state_dict(run.model, run.optimizer)
    assert sparsifier.step == 0  # torch has just stepped an optimizer without state, to make one: that does not count
    dcp.load({"model": model, "optimizer": optimizer}, checkpoint_id=folder, no_dist=alone)
    set_state_dict(run.model, run.optimizer, model_state_dict=model, optim_state_dict=optimizer)
    partial = DefaultLoadPlanner(allow_partial_load=True)  # a schedule that has ended saved its masks alone
    dcp.load({"sparsifier": sparsifier}, checkpoint_id=folder, planner=partial, no_dist=alone)


def refused(attempt: Callable[[], object]) -> str:
    """What an AttachError says."""
    try:
        attempt()
    except AttachError as error:
        assert error.where and error.given and error.wrong and error.fix
        return str(error)
    return "not refused"


def shard_after_attach() -> None:
    run = one()
    attached(run, nm.LBC("2:4"))
    fully_shard(run.model)
    run.step(*data()[0])


def shard_after_plan(old_optimizer: bool) -> None:
    model = blocks()
    optimizer, sparsifier = sgd(model), nm.Sparsifier(model, nm.LBC("2:4"))
    fully_shard(model)
    sparsifier.attach(optimizer if old_optimizer else sgd(model), STEPS)


def cut_groups() -> None:
    """64 inputs over the ranks, in groups of 64."""
    model = blocks()
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    parallelize_module(model, mesh, {"blocks.0.down": RowwiseParallel()})
    nm.Sparsifier(model, nm.Gradual("1:4"), {"blocks.0.down": "1:64"}).attach(sgd(model), STEPS)


def first_fsdp() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated, and says so
        model = FullyShardedDataParallel(blocks(), device_id=torch.device("cpu"), use_orig_params=True)
    nm.Sparsifier(model, nm.LBC("2:4"))


def zero_in_backward() -> None:
    from torch.distributed.optim import ZeroRedundancyOptimizer  # its import warns

    model = nn.parallel.DistributedDataParallel(blocks())
    optimizer = ZeroRedundancyOptimizer(model.parameters(), torch.optim.SGD, overlap_with_ddp=True, lr=0.1)
    nm.Sparsifier(model, nm.LBC("2:4")).attach(optimizer, STEPS)


def declined(way: str, method: str) -> str:
    """What is said when a method meets a way of sharding that it cannot work with."""
    return refused(lambda: attached(WAYS[way](), METHODS[method]))


def wrap_after_attach(method: nm.Method) -> None:
    """Ranks that begin with other weights: DDP would give all of them the first one's, but not its masks."""
    torch.manual_seed(dist.get_rank())
    model = Blocks()
    optimizer = sgd(model)
    nm.Sparsifier(model, method, RULES).attach(optimizer, STEPS)
    nn.parallel.DistributedDataParallel(model)


def wrapped_first(name: str) -> dict[str, Any]:
    """The same in the right order: what the ranks began with does not matter, and all have the same bits."""
    torch.manual_seed(dist.get_rank())
    model = Blocks()
    run = Run(model, nn.parallel.DistributedDataParallel(model), sgd(model), dist.get_rank(), dist.get_world_size())
    sparsifier = nm.Sparsifier(run.forward, METHODS[name], RULES).attach(run.optimizer, STEPS)
    for x, y in data():
        run.step(x, y)
    nn.parallel.DistributedDataParallel(model)  # again, as a loop of evaluation may
    sparsifier.finalize()
    nn.parallel.DistributedDataParallel(model)
    return {key: p.detach() for key, p in model.named_parameters()}


def wrapped_when_forgotten() -> str:
    """A sparsifier that waits in a cycle for the garbage collector is in nobody's way."""
    model = blocks()
    cycle: list[Any] = [sgd(model)]
    cycle += [nm.Sparsifier(model, nm.OneShot("2:4"), RULES).attach(cycle[0], STEPS), cycle]
    del cycle
    return refused(lambda: nn.parallel.DistributedDataParallel(model))


def refusals() -> dict[str, str]:
    return {
        "sharded after attach": refused(shard_after_attach),
        "sharded after the plan": refused(lambda: shard_after_plan(old_optimizer=False)),
        "sharded after the optimizer": refused(lambda: shard_after_plan(old_optimizer=True)),
        "cut groups": refused(cut_groups),
        "FSDP1": refused(first_fsdp),
        "ZeRO in backward": refused(zero_in_backward),
        "whole weights": declined("fsdp", "sste"),
        "another backward": declined("fsdp-of-one", "bimask"),
        "DDP after attach": refused(lambda: wrap_after_attach(nm.OneShot("2:4"))),
        "DDP when forgotten": wrapped_when_forgotten(),
        "nothing": refused(lambda: attached(fsdp(), nm.LBC("2:4"))),
    }
