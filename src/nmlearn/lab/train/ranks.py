"""The processes of a training run: one, or several started by torchrun.

torchrun sets WORLD_SIZE, RANK and LOCAL_RANK; with more than one process they join over gloo (CPU) or nccl (GPU).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist

from nmlearn.errors import ConfigError

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process among all of them.

    Attributes:
        rank: its number; rank 0 writes.
        size: the number of processes.
        device: the one it computes on.
    """

    rank: int
    size: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this process writes files."""
        return self.rank == 0

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum of ``values`` over all processes."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def gather(self, value: T) -> list[T]:
        """``value`` of every process, in rank order: CPU tensors, or anything that can be pickled."""
        if self.size == 1:
            return [value]
        everyone = [value] * self.size
        dist.all_gather_object(everyone, value)
        return everyone

    def share_buffers(self, model: torch.nn.Module) -> None:
        """Copy the first process's buffers to all: batch norm statistics differ, since each saw its own examples."""
        if self.size > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, src=0)


@contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """Join the other processes, if any, and leave them at the end.

    Args:
        device: "auto", "cpu" or "cuda".

    Raises:
        ConfigError: "cuda" on a machine without it.
    """
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    chosen = _device(device)
    if size == 1:
        yield Ranks(0, 1, chosen)
        return
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield Ranks(rank, size, chosen)
    finally:
        leave()


def leave() -> None:
    """Destroy the process group.

    gloo's threads free the last collective's Python state shortly after it is done, and need the GIL for that. torch
    frees a group, or the DistributedDataParallel that holds it, while holding the GIL and waiting for those threads. A
    pause lets them finish first: without it, one run in several hundred hangs.
    """
    time.sleep(0.2)
    dist.destroy_process_group()


def _device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            where="device",
            given=name,
            wrong="torch sees no CUDA device",
            fix="set device to cpu, or see nmlearn doctor",
        )
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
