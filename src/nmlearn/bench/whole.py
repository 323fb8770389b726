"""Whole networks: as they are, frozen by torch.compile, accelerated, and both."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from nmlearn import models
from nmlearn.acceleration.accelerate import accelerate
from nmlearn.acceleration.timing import interleaved
from nmlearn.bench.weights import sparse_network_

NETWORKS = ("resnet50", "deit-small")


def networks(patterns: Sequence[str], dtype: torch.dtype, seconds: float) -> Iterator[dict[str, Any]]:
    """Batch 1, 224x224. Weights' bytes are those of all layers, packed or not, over dense."""
    for name in NETWORKS:
        torch.manual_seed(0)
        dense = models.build(name, classes=1000, input_shape=(3, 224, 224)).eval().requires_grad_(False).to(dtype)
        x = torch.randn(1, 3, 224, 224).to(dtype)
        last = copy.deepcopy(dense).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        calls: dict[str, Any] = {"eager": lambda: dense(x), "eager channels_last": lambda: last(x)}  # noqa: B023
        frozen = _frozen(dense, x)
        calls["frozen"] = lambda: frozen(x)  # noqa: B023
        found = {}
        for pattern in patterns:
            model = sparse_network_(copy.deepcopy(dense), pattern)
            report = accelerate(model, x, cache=None)
            found[pattern] = (model, sum(row.chosen for row in report.rows))
            calls[pattern] = lambda model=model: model(x)  # noqa: B023
            both = _frozen(model, x)
            calls[f"{pattern} frozen"] = lambda both=both: both(x)  # noqa: B023
        with torch.inference_mode():
            times = interleaved(calls, seconds=20 * seconds, least=15)
        for pattern, (model, packed) in found.items():
            yield {
                "suite": "model",
                "case": name,
                "pattern": pattern,
                "dtype": str(dtype).removeprefix("torch."),
                "eager_ms": 1e3 * min(times["eager"], times["eager channels_last"]),
                "best_ms": 1e3 * min(times["eager"], times["eager channels_last"], times["frozen"]),
                "sparse_ms": 1e3 * min(times[pattern], times[f"{pattern} frozen"]),
                "sparse_eager_ms": 1e3 * times[pattern],
                "kernel": f"{packed} layers packed",
                "weights_over_dense": nbytes(model) / nbytes(dense),
            }


def nbytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers."""
    return sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()])


def _frozen(model: nn.Module, x: torch.Tensor) -> Any:
    """The model compiled with its weights as constants: the best dense that torch itself offers."""
    import torch._inductor.config as inductor

    with inductor.patch(freezing=True), torch.inference_mode():
        compiled = torch.compile(copy.deepcopy(model))
        compiled(x)
    return compiled
