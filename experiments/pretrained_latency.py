"""File size and latency of packed models: seed 0 of experiments/pretrained.py and of the GPT comparison.

    python experiments/pretrained_latency.py               # writes results/pretrained_latency.json
    python experiments/pretrained_latency.py --sizes-only  # without timing, which needs an idle machine

A file is float32: the dense model's with ``nm.save(packed=False)``, the sparse one's packed. Latency is for one batch:
the best dense (eager in its better memory format, or torch.compile with freezing) and ``nm.accelerate``, eager or
compiled in the same way; medians of interleaved calls. If no layer was replaced, the sparse model is an ordinary one
and runs like the dense one. Patterns without models are omitted.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import nmlearn as nm
import pretrained_minilm
from nmlearn.acceleration.timing import interleaved
from nmlearn.lab import models
from nmlearn.lab.bench.whole import frozen
from nmlearn.lab.train.environment import environment
from nmlearn.lab.train.setting import load_weights
from nmlearn.native import library as native

PATTERNS = ("2:4", "1:4", "2:8")


@dataclass(frozen=True)
class Learned:
    """A model of a comparison: how it is built, where its runs are, and its inputs."""

    name: str
    runs: str
    results: str
    build: Callable[[], nn.Module]
    example: dict[str, torch.Tensor] | torch.Tensor


def efficientnet() -> nn.Module:
    """The network with newly initialised weights."""
    return models.build("efficientnet_lite_pytorch:efficientnet-lite0", classes=10, input_shape=(1, 64, 64))


def minilm() -> nn.Module:
    """The network with a new classifier."""
    return pretrained_minilm.network(pretrained_minilm.checked_folder())


def gpt() -> nn.Module:
    """The network of recipes/text-gpt-compare.yaml."""
    return models.build("gpt", classes=256, input_shape=(128,), kind="language")


TOKENS = torch.arange(1000, 1032)[None]
LEARNED = (
    Learned(
        "EfficientNet-Lite0, 64x64", "pretrained-efficientnet", "pretrained-efficientnet.json", efficientnet,
        torch.randn(1, 1, 64, 64),
    ),
    Learned(
        "MiniLM-L6, 32 tokens", "pretrained-minilm", "pretrained-minilm.json", minilm,
        {"input_ids": TOKENS, "attention_mask": torch.ones_like(TOKENS)},
    ),
    Learned("GPT, 4 layers, 128 bytes", "text-gpt-compare", "text-gpt-compare.json", gpt, torch.arange(128)[None]),
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="parent folder of the comparisons")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--seconds", type=float, default=20.0, help="how long to time each model")
    parser.add_argument("--sizes-only", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("results/pretrained_latency.json"))
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    told = environment(torch.device("cpu")) | {"kernels": native.isa()}
    rows = [row for learned in LEARNED for row in measure(learned, given)]
    settings = {"seed": given.seed, "threads": given.threads, "seconds": given.seconds, "batch": given.batch}
    found = {"what": "pretrained latency", "settings": settings, "environment": told, "rows": rows}
    given.out.write_text(json.dumps(found, indent=1) + "\n")


def measure(learned: Learned, given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One row for each pattern with a model."""
    folder = given.runs / learned.runs / "runs"
    files = {p: folder / f"lbc-{p.replace(':', 'of')}-s{given.seed}" / "model" / "model.safetensors" for p in PATTERNS}
    files = {pattern: path for pattern, path in files.items() if path.exists()}
    dense_file = folder / f"dense-s{given.seed}" / "model" / "model.safetensors"
    if not files or not dense_file.exists():
        print(f"{learned.name}: no models in {folder}")
        return
    dense = loaded(learned, dense_file)
    sparse = {pattern: loaded(learned, path) for pattern, path in files.items()}
    sizes = {pattern: size(model, packed=True) for pattern, model in sparse.items()}
    batches = [] if given.sizes_only else given.batch
    times = {str(batch): timed(learned, dense, sparse, batch, given.seconds) for batch in batches}
    for pattern in files:
        yield {
            "model": learned.name,
            "from": learned.results,
            "pattern": pattern,
            "dense_bytes": size(dense, packed=False),
            "packed_bytes": sizes[pattern],
            "batch": {batch: found[pattern] for batch, found in times.items()},
        }


def loaded(learned: Learned, path: Path) -> nn.Module:
    """The model with the weights of a run, for inference."""
    model = learned.build().eval().requires_grad_(False)
    load_weights(model, path)
    return model


def size(model: nn.Module, packed: bool) -> int:
    """Bytes of the model's file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        nm.save(model, path, packed=packed)
        return path.stat().st_size


def timed(
    learned: Learned, dense: nn.Module, sparse: dict[str, nn.Module], batch: int, seconds: float
) -> dict[str, dict[str, float]]:
    """By pattern: milliseconds of eager, the best dense and the accelerated model, and how many layers changed."""
    torch.compiler.reset()  # drop earlier models, which share a cache of limited length with these
    example = repeated(learned.example, batch)
    last = copy.deepcopy(dense).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    variants: dict[str, Any] = {"eager": dense, "channels_last": last, "frozen": compiled(dense, example)}
    packed = {}
    for pattern, model in sparse.items():
        variants[pattern] = copy.deepcopy(model)
        report = nm.accelerate(variants[pattern], example, cache=None)
        packed[pattern] = sum(row.chosen for row in report.rows)
        variants[f"{pattern} frozen"] = compiled(variants[pattern], example)
        print(f"{learned.name}, batch {batch}, {pattern}\n{report}", flush=True)
    calls = {name: lambda model=model: call(model, example) for name, model in variants.items()}
    with torch.inference_mode():
        timing = interleaved(calls, seconds=seconds, least=15)
    times = {name: 1e3 * value for name, value in timing.seconds.items()}
    eager = min(times["eager"], times["channels_last"])
    best = {"eager_ms": eager, "best_ms": min(eager, times["frozen"])}
    return {
        pattern: best | {"sparse_ms": min(times[pattern], times[f"{pattern} frozen"]), "layers_packed": packed[pattern]}
        for pattern in sparse
    }


def repeated(example: Any, batch: int) -> Any:
    """A batch of copies of the example."""
    if isinstance(example, dict):
        return {key: repeated(value, batch) for key, value in example.items()}
    return example.repeat(batch, *[1] * (example.dim() - 1))


def compiled(model: nn.Module, example: Any) -> Any:
    """The model compiled with frozen weights."""
    return frozen(model, **example) if isinstance(example, dict) else frozen(model, example)


def call(model: Any, example: Any) -> Any:
    return model(**example) if isinstance(example, dict) else model(example)


if __name__ == "__main__":
    main()
