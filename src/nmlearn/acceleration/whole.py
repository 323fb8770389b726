"""A whole model on an example: its first run, and how long it takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from nmlearn.acceleration import gpu_timing, replacement
from nmlearn.acceleration.gpu import Gpu, gpu_of
from nmlearn.acceleration.observing import Seen, observe
from nmlearn.acceleration.timing import interleaved
from nmlearn.errors import KernelError
from nmlearn.model import example


def first_run(model: nn.Module, inputs: Any, where: str) -> tuple[Callable[[], Any], Seen]:
    """The call of a model with an example, and what one run of it shows.

    Args:
        inputs: a tensor, a tuple of arguments or a dict of keyword arguments.
        where: what an error calls the example.

    Raises:
        KernelError: inputs of another form, or such that the model's forward refuses.
    """
    call = example.caller(model, inputs)
    if call is None:
        raise _refused(model, inputs, f"it is a {type(inputs).__name__}", where)
    try:
        seen = observe(model, call)
    except Exception as error:
        wrong = f"the model's forward said: {type(error).__name__}: {error}"
        raise _refused(model, inputs, wrong, where) from error
    seen.readers |= replacement.still_read(model, seen)
    return call, seen


def _refused(model: nn.Module, inputs: Any, wrong: str, where: str) -> KernelError:
    fix = example.wanted(model, "a tensor, a tuple of arguments or a dict of keyword arguments")
    return KernelError(where=where, given=example.said(inputs), wrong=wrong, fix=fix)


def gpu_behind(seen: Seen) -> Gpu | None:
    """The GPU of the model's last layer, which finishes last."""
    gpus = [gpu for layer in seen.layers.values() if (gpu := gpu_of(layer.weight.device))]
    return gpus[-1] if gpus else None


def time(name: str, call: Callable[[], Any], gpu: Gpu | None) -> dict[str, float]:
    """Seconds of the whole model, "called" and, on a GPU, as a "graph" if it can be captured."""
    return {"called": interleaved({name: call}).seconds[name]} if gpu is None else gpu_timing.of_model(name, call, gpu)


def like(times: dict[str, float], others: dict[str, float]) -> float:
    """The one of these times that is comparable with the others: the graph's if both have one."""
    return times["graph" if "graph" in times and "graph" in others else "called"]


def dense_time(model: nn.Module, call: Callable[[], Any], gpu: Gpu | None) -> dict[str, float]:
    """The times in the faster of the two memory formats; the model keeps the one it had."""
    now = time("now", call, gpu)
    with replacement.formatted(model, torch.channels_last) as changed:
        last = time("last", call, gpu) if changed else now
    return {how: min(now[how], last[how]) for how in now if how in last}
