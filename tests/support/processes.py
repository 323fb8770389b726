"""Processes of their own, without the seconds that importing torch takes: a server has imported it, and forks."""

from __future__ import annotations

import multiprocessing
import os
import socket
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch
import torch.multiprocessing

SERVER = multiprocessing.get_context("forkserver")
IMPORTED = ("nmlearn.cli", "nmlearn.lab.train.loop", "torch.distributed.checkpoint.state_dict")
IMPORTED += ("torch.distributed.fsdp", "torch.distributed.pipelining", "torch.distributed.tensor.debug")
IMPORTED += ("torch.distributed.tensor.parallel",)
SERVER.set_forkserver_preload(list(IMPORTED))


def start(world: int, function: Callable[..., None], *arguments: Any) -> None:
    """Run ``function(number, *arguments)`` in ``world`` processes, and wait; what one raises is raised."""
    torch.multiprocessing.start_processes(function, arguments, nprocs=world, start_method="forkserver")


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return int(free.getsockname()[1])


def as_torchrun(number: int, world: int, port: int) -> None:
    """Tell this process what torchrun tells those that it starts, and give it one thread."""
    os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)


def _strict() -> None:
    """Make warnings errors, but for ours of a run of a few steps."""
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", "the masks are final after . optimizer steps", UserWarning)


def apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns in a process of its own, where warnings are errors."""
    with ProcessPoolExecutor(1, SERVER, initializer=_strict) as pool:
        return pool.submit(function, *arguments).result()
