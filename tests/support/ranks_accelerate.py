"""What the ranks of accelerate's distributed tests run; a module of its own, which their processes can import."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard

import nmlearn as nm
from accelerate_run import Run
from nets import batches, convnet, same, sgd
from nmlearn.integrations.accelerate import WholeState
from nmlearn.lab.train.ranks import leave
from nmlearn.learn import compact
from nmlearn.model.shards import gathered
from processes import as_torchrun


def ddp(number: int, port: int, folder: Path) -> None:
    """An epoch, save_state, another; and the second again from the file."""
    as_torchrun(number, 2, port)
    run = Run(nm.LBC("2:4"), steps=8)
    assert type(run.model).__name__ == "DistributedDataParallel"
    run.epoch()
    run.accelerator.save_state(str(folder / "state"))
    run.accelerator.wait_for_everyone()
    run.epoch()
    other = Run(nm.LBC("2:4"), steps=8, seed=1)
    other.accelerator.load_state(str(folder / "state"))
    other.epoch()
    assert same(run.state(), other.state())
    run.sparsifier.finalize()
    torch.save(dict(run.model.named_parameters()), folder / f"{number}.pt")
    leave()


def fsdp(number: int, port: int, folder: Path) -> None:
    """accelerate shards on GPUs only: here is what it does with the object, on real shards."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://localhost:{port}", rank=number, world_size=2)
    model, optimizer, sparsifier = sharded()
    learn(model, optimizer, 0, 4)
    saved = WholeState(sparsifier).state_dict()
    if number == 0:
        torch.save(saved, folder / "state.pkl")
    kept = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    learn(model, optimizer, 4, 8)
    again, optimizer, other = sharded()
    again.load_state_dict(kept[0])
    optimizer.load_state_dict(kept[1])
    dist.barrier()
    loaded = torch.load(folder / "state.pkl", weights_only=True)
    older = compact.unpacked(loaded)  # with masks as bytes, as it was before
    assert loaded["format"] != older["format"]
    WholeState(other).load_state_dict(older)
    of_older = gathered(other.state_dict())
    WholeState(other).load_state_dict(loaded)
    assert same(of_older, gathered(other.state_dict()))
    learn(again, optimizer, 4, 8)
    whole = [gathered(each.state_dict()) for each in (sparsifier, other)]
    assert same(*whole) and same(gathered(model.state_dict()), gathered(again.state_dict()))
    torch.save(whole[0], folder / f"{number}.pt")
    leave()


def sharded() -> tuple[torch.nn.Module, torch.optim.Optimizer, nm.Sparsifier]:
    torch.manual_seed(0)
    model = convnet().eval()
    fully_shard(model.hidden)
    fully_shard(model)
    optimizer = sgd(model)
    return model, optimizer, nm.Sparsifier(model, nm.LBC("2:4")).attach(optimizer, 8)


def learn(model: torch.nn.Module, optimizer: torch.optim.Optimizer, start: int, end: int) -> None:
    rank, size = dist.get_rank(), dist.get_world_size()
    for x, y in list(batches(8, size=12))[start:end]:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x.chunk(size)[rank]), y.chunk(size)[rank]).backward()
        optimizer.step()
