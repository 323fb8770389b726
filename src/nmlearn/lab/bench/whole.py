"""Whole networks: as they are, frozen by torch.compile, accelerated, and both."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from nmlearn.acceleration.accelerate import accelerate
from nmlearn.acceleration.timing import interleaved
from nmlearn.lab import models
from nmlearn.lab.bench.weights import sparse_network_
from nmlearn.maths.pattern import Pattern

NETWORKS = ("resnet50", "deit-small")


def networks(patterns: Sequence[str], dtype: torch.dtype, seconds: float) -> Iterator[dict[str, Any]]:
    """Batch 1, 224x224. The bytes of all layers, packed or not, are relative to dense."""
    for name in NETWORKS:
        torch.manual_seed(0)
        dense = models.build(name, classes=1000, input_shape=(3, 224, 224)).eval().requires_grad_(False).to(dtype)
        for pattern in patterns:
            yield {"suite": "model", "case": name, "pattern": pattern, "dtype": str(dtype).removeprefix("torch.")} | (
                _measured(dense, pattern, seconds)
            )


def _measured(dense: nn.Module, pattern: str, seconds: float) -> dict[str, Any]:
    """The dense and the packed network, each eager and compiled, interleaved."""
    # Compiled networks of one class share a cache of limited length that every call searches: keep only these two.
    torch.compiler.reset()
    x = torch.randn(1, 3, 224, 224, dtype=next(dense.parameters()).dtype)
    last = copy.deepcopy(dense).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    packed = sparse_network_(copy.deepcopy(dense), pattern)
    report = accelerate(packed, x, cache=None)
    networks = {"eager": dense, "eager channels_last": last, "frozen": frozen(dense, x)}
    networks |= {"packed": packed, "packed frozen": frozen(packed, x)}
    with torch.inference_mode():
        calls = {name: lambda network=network: network(x) for name, network in networks.items()}
        limits = dict.fromkeys(("packed", "packed frozen"), Pattern(pattern).m / Pattern(pattern).n)
        timing = interleaved(calls, seconds=10 * seconds, least=15, limits=limits)
    times = timing.seconds
    eager = min(times["eager"], times["eager channels_last"])
    return {
        "eager_ms": 1e3 * eager,
        "best_ms": 1e3 * min(eager, times["frozen"]),
        "sparse_ms": 1e3 * min(times["packed"], times["packed frozen"]),
        "ways_ms": {name: 1e3 * seconds for name, seconds in times.items()},
        "spread": timing.spread,
        "noise": timing.noise,
        "kernel": f"{sum(row.chosen for row in report.rows)} layers packed",
        "weights_over_dense": nbytes(packed) / nbytes(dense),
    }


def nbytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers."""
    return sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()])


def frozen(model: nn.Module, *inputs: Any, **named: Any) -> Any:
    """The model compiled with its weights as constants, called once: the best dense that torch offers."""
    import torch._inductor.config as inductor

    with inductor.patch(freezing=True), torch.inference_mode():
        compiled = torch.compile(copy.deepcopy(model))
        compiled(*inputs, **named)
    return compiled
