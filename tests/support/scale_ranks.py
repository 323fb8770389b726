"""What the ranks of the tests of scale run: every way of sharding, one after the other in the same processes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.pipelining import PipelineStage, ScheduleGPipe
from torch.distributed.tensor import Shard, distribute_module, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

import nmlearn as nm
from nets import batches, sgd
from nmlearn.lab.train.ranks import leave
from nmlearn.model.shards import local, placed
from processes import start

STEPS, SIZE, INPUTS = 16, 12, 16
RULES = {"head": "2:4"}  # five rows: uneven on two ranks, and nothing on the last of four
METHODS = {
    "lbc": nm.LBC("2:4"),
    "srste": nm.SRSTE("2:4"),
    "lbc-weight": nm.LBC("8:16"),
    # AdamW's first step moves all scores by the same lr: at once they would be removed by the rounding of gradients.
    "lbc-explicit": nm.LBC("1:4", start=0.2, scores="explicit", score_optimizer="adamw"),
    "gradual": nm.Gradual("1:4"),
    "admm": nm.ADMM("2:4", rho=0.1, projections=4),
    "oneshot": nm.OneShot("1:4", at=0.5),
    "maskllm": nm.MaskLLM("2:4", lr=0.02, end=0.75),
    "sste": nm.SSTE("2:4"),
    "stepadam": nm.STEP("2:4", eps=1e-2),  # the rates are those of SGD
    "cast": nm.CAST("2:4", decay=1e-2, end=0.75, refreshes=4, eps=1e-2),
    "mdgf": nm.MdGf("2:4"),
    "sdgf": nm.SdGf("1:4"),
    "maxq": nm.MaxQ("2:4", end=0.5, decay=1e-2),
    "bimask": nm.BiMask("2:4", candidates=5, draws=4, decay=1e-2),
    "tsrste": nm.TSRSTE("2:4", decay=1e-2, refreshes=4),
    "dense": nm.methods.Dense("2:4"),
    "keep": nm.methods.Keep("2:4"),
    "wanda": nm.Wanda("2:4"),
}


class Block(nn.Module):
    """Two linear layers with a residual, as in a transformer: the first is split by outputs, the second by inputs."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.relu(self.up(x)))


class Blocks(nn.Module):
    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Linear(INPUTS, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(2))
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def blocks() -> Blocks:
    torch.manual_seed(0)
    return Blocks()


def data() -> list[tuple[Tensor, Tensor]]:
    return batches(STEPS, shape=(INPUTS,), size=SIZE)


@dataclass
class Run:
    """A model as one way of sharding has it, its optimizer, and which part of every batch this rank sees."""

    model: nn.Module
    forward: nn.Module
    optimizer: torch.optim.Optimizer
    part: int = 0
    parts: int = 1

    def step(self, x: Tensor, y: Tensor) -> None:
        self.optimizer.zero_grad()
        F.cross_entropy(self.forward(self.share(x)).float(), self.share(y)).backward()
        self.optimizer.step()

    def share(self, batch: Tensor) -> Tensor:
        return batch.chunk(self.parts)[self.part]


def one() -> Run:
    model = blocks()
    return Run(model, model, sgd(model))


def ddp() -> Run:
    model = blocks()
    return Run(model, DistributedDataParallel(model), sgd(model), dist.get_rank(), dist.get_world_size())


def zero() -> Run:
    from torch.distributed.optim import ZeroRedundancyOptimizer  # its import warns

    run = ddp()
    settings = {"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-3}
    run.optimizer = ZeroRedundancyOptimizer(run.model.parameters(), torch.optim.SGD, **settings)
    return run


def sharded(model: nn.Module, mesh: Any = None, **kwargs: Any) -> Run:
    """FSDP2 on each block and on the rest."""
    for block in model.blocks:
        fully_shard(block, mesh=mesh, **kwargs)
    fully_shard(model, mesh=mesh, **kwargs)
    return Run(model, model, sgd(model), dist.get_rank(), dist.get_world_size())


def fsdp() -> Run:
    return sharded(blocks())


def fsdp_mixed(dtype: torch.dtype) -> Run:
    return sharded(blocks(), mp_policy=MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float64))


def fsdp_of_one() -> Run:
    """FSDP2 over a mesh of one rank: weights are DTensors, and whole."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(), 1), mesh_dim_names=("copies", "one"))
    run = sharded(blocks(), mesh["one"])
    return Run(run.model, run.model, run.optimizer)


def hsdp() -> Run:
    """Replicas of shards; on two ranks one replica."""
    mesh = init_device_mesh("cpu", (dist.get_world_size() // 2, 2), mesh_dim_names=("copies", "shards"))
    return sharded(blocks(), mesh)


def tensor_parallel(mesh: Any = None) -> Run:
    model, plan = blocks(), {"blocks.*.up": ColwiseParallel(), "blocks.*.down": RowwiseParallel()}
    parallelize_module(model, mesh or init_device_mesh("cpu", (dist.get_world_size(),)), plan)
    return Run(model, model, sgd(model))


def tensor_parallel_fsdp() -> Run:
    mesh = init_device_mesh("cpu", (dist.get_world_size() // 2, 2), mesh_dim_names=("data", "tensor"))
    run = sharded(tensor_parallel(mesh["tensor"]).model, mesh["data"])
    run.part, run.parts = mesh["data"].get_local_rank(), mesh["data"].size()
    return run


WAYS: dict[str, Callable[[], Run]] = {
    "ddp": ddp,
    "zero": zero,
    "fsdp": fsdp,
    "fsdp-float64": lambda: fsdp_mixed(torch.float64),
    "fsdp-bfloat16": lambda: fsdp_mixed(torch.bfloat16),
    "fsdp-of-one": fsdp_of_one,
    "hsdp": hsdp,
    "tensor": tensor_parallel,
    "tensor-fsdp": tensor_parallel_fsdp,
}


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor on every rank."""
    tensor = tensor.detach()
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).clone()


def result(run: Run, sparsifier: nm.Sparsifier) -> dict[str, dict[str, Tensor]]:
    """The weights and the masks as they would be on one process."""
    rows, local = {row.name: row for row in sparsifier.plan.sparse}, sparsifier.masks()
    masks = {name: placed({"mask": mask}, rows[name].parameter, rows[name].grouping) for name, mask in local.items()}
    return {
        "weights": {name: whole(p) for name, p in run.model.named_parameters()},
        "masks": {name: whole(each["mask"]) for name, each in masks.items()},
    }


def thin(model: nn.Module, method: nm.Method) -> None:
    """Make the model sparse where the method takes a sparse one."""
    for module in model.modules() if isinstance(method, nm.Keep | nm.Wanda) else ():
        if isinstance(module, nn.Linear):
            local(module.weight).unflatten(1, (-1, 4))[..., 1:3] = 0.0


def attached(run: Run, method: nm.Method, *, travels: bool = False) -> nm.Sparsifier:
    thin(run.model, method)
    return nm.Sparsifier(run.forward, method, RULES).attach(run.optimizer, STEPS, travels=travels)


def counted(run: Run) -> list[dict[str, int]]:
    """Train to the end; what every step communicated."""
    counts = []
    for x, y in data():
        with CommDebugMode() as counter:
            run.step(x, y)
        counts.append({str(op): count for op, count in counter.get_comm_counts().items()})
    return counts


def learned(way: str, method: str) -> dict[str, Any]:
    """A whole training."""
    run = WAYS[way]()
    sparsifier = attached(run, METHODS[method])
    counts = counted(run)
    found = result(run, sparsifier)
    sparsifier.finalize()
    return found | {"collectives": counts}


def plain(way: str) -> list[dict[str, int]]:
    """What every step of plain training communicates."""
    return counted(WAYS[way]())


def watched() -> list[dict[str, int]]:
    """As plain training, with one collective more in a step hook: what the count must show."""
    run = fsdp()
    run.optimizer.register_step_post_hook(lambda *_: dist.all_reduce(torch.ones(1)))
    return counted(run)


def pipeline(method: str) -> dict[str, Any]:
    """One block a stage; planned on the whole model, whose last layer a stage does not know."""
    plan = nm.Sparsifier(blocks(), METHODS[method], RULES).plan
    model, last = blocks(), dist.get_rank() == 1
    del model.blocks[0 if last else 1]
    model.blocks = nn.ModuleDict({str(int(last)): model.blocks[0]})
    stage = Stage(model, first=not last, last=last)
    rules = {row.name: row.pattern for row in plan.rows if row.name in dict(stage.named_parameters())}
    optimizer = sgd(stage)
    thin(stage, METHODS[method])
    sparsifier = nm.Sparsifier(stage, METHODS[method], rules).attach(optimizer, STEPS)
    schedule = ScheduleGPipe(PipelineStage(stage, int(last), 2, torch.device("cpu")), 2, loss_fn=F.cross_entropy)
    for x, y in data():
        optimizer.zero_grad()
        schedule.step(target=y) if last else schedule.step(x)
        optimizer.step()
    found = result(Run(stage, stage, optimizer), sparsifier)
    sparsifier.finalize()
    return found


class Stage(nn.Module):
    """A part of :class:`Blocks`, its weights named as there."""

    def __init__(self, model: Blocks, first: bool, last: bool) -> None:
        super().__init__()
        self.stem = model.stem if first else None
        self.blocks, self.head = model.blocks, model.head if last else None

    def forward(self, x: Tensor) -> Tensor:
        for part in (self.stem, *self.blocks.values(), self.head):
            x = part(x) if part is not None else x
        return x


def replicated(method: str) -> dict[str, Any]:
    """Replicated DTensor weights and a batch cut over the ranks: gradients come as sums that are still to be taken."""
    model, mesh = blocks(), init_device_mesh("cpu", (dist.get_world_size(),))
    distribute_module(model, mesh)
    run = Run(model, model, sgd(model))
    sparsifier, (parts,) = attached(run, METHODS[method]), mesh.shape
    for x, y in data():
        run.optimizer.zero_grad()
        out = model(distribute_tensor(x, mesh, [Shard(0)])).to_local()
        (F.cross_entropy(out, y.chunk(parts)[dist.get_rank()]) / parts).backward()
        assert model.stem.weight.grad.placements[0].is_partial()
        run.optimizer.step()
    return result(run, sparsifier)


def join(number: int, world: int, folder: Path) -> None:
    torch.set_num_threads(1)
    wait = timedelta(seconds=100)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=number, world_size=world, timeout=wait)


def rank(number: int, world: int, jobs: list[tuple[Any, ...]], folder: Path) -> None:
    """One rank of all the jobs, (function, its arguments ...), one after the other; a file of results a rank."""
    join(number, world, folder)
    torch.save([job(*arguments) for job, *arguments in jobs], folder / f"{number}.pt")
    leave()


def run_jobs(world: int, jobs: list[tuple[Any, ...]], folder: Path) -> list[list[Any]]:
    """The results of every job, of each of ``world`` processes."""
    start(world, rank, world, jobs, folder)
    found = [torch.load(folder / f"{number}.pt", weights_only=True) for number in range(world)]
    return [list(of_ranks) for of_ranks in zip(*found, strict=True)]
