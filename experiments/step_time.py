r"""Step time with LBC relative to dense: interleaved in one run, medians.

    python experiments/step_time.py --out results/step_time_cpu.json
    python experiments/step_time.py --model resnet50 --image 224 --batch 128 --device cuda --bf16 \
        --out results/step_time_gpu.json

Five copies of one network process the same batch in turn: dense, dense with torch's fused SGD, and LBC (with plain SGD)
before its schedule removes anything, in the middle of it and after its end. Steps that remove combinations are timed
separately, because they are rare.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import nmlearn as nm
from nmlearn.lab import models
from nmlearn.lab.train.environment import environment

FOREVER = 1_000_000_000  # steps: progress does not advance during measurement
PHASES = {"before": 0.0, "during": 0.2, "after": 1.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--image", type=int, default=64)
    parser.add_argument("--batch", type=int, nargs="+", default=[32, 128])
    parser.add_argument("--pattern", nargs="+", default=["2:4", "4:8", "1:16"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bf16", action="store_true", help="bf16 autocast")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = [measure(args, pattern, batch) for batch in args.batch for pattern in args.pattern]
    found = {"what": __doc__.splitlines()[0], "settings": vars(args) | {"out": str(args.out)}, "rows": rows}
    found |= {"environment": environment(torch.device(args.device))}
    if args.out:
        args.out.write_text(json.dumps(found, indent=1, default=str) + "\n")


def measure(args: argparse.Namespace, pattern: str, batch: int) -> dict[str, Any]:
    runs = {"dense": Run(args, None, 0.0)}
    runs |= {"dense_fused": Run(args, None, 0.0, fused=True)}
    runs |= {phase: Run(args, pattern, progress) for phase, progress in PHASES.items()}
    x = torch.randn(batch, 3, args.image, args.image, device=args.device).to(memory_format=torch.channels_last)
    y = torch.randint(1000, (batch,), device=args.device)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(args.repeats + 3):
        for name, run in runs.items():
            seconds = run.step(x, y)
            if repeat >= 3:
                times[name].append(seconds)
    dense = statistics.median(times["dense"])
    row = {
        "batch": batch,
        "pattern": pattern,
        "dense_ms": 1e3 * dense,
        "dense_fused_ms": 1e3 * statistics.median(times["dense_fused"]),
        "ratio": {name: statistics.median(times[name]) / dense for name in PHASES},
        "removal_step_extra_ms": 1e3 * (runs["before"].removal(x, y) - dense),
        "state_bytes_per_weight": {name: runs[name].state_bytes() for name in PHASES},
    }
    print(json.dumps(row))
    return row


def go_to(sparsifier: Any, progress: float) -> None:
    """Set the step that a sparsifier stands at, of FOREVER: its next one follows the schedule there.

    Not by a state: one whose steps are not those of its schedule is refused.
    """
    for part in sparsifier._attached.parts:
        part.steps = int(progress * FOREVER)


class Run:
    """One network with its optimizer, dense or with LBC held at one point of its schedule."""

    def __init__(self, args: argparse.Namespace, pattern: str | None, progress: float, fused: bool = False) -> None:
        torch.manual_seed(0)
        net = models.build(args.model, classes=1000, input_shape=(3, args.image, args.image))
        self.net: nn.Module = net.to(args.device, memory_format=torch.channels_last)
        settings = {"momentum": 0.9, "weight_decay": 1e-4, "fused": fused or None}
        self.optimizer = torch.optim.SGD(self.net.parameters(), 0.01, **settings)
        self.autocast = torch.autocast(args.device, torch.bfloat16, enabled=args.bf16)
        self.gpu = args.device != "cpu"
        self.sparsifier = nm.Sparsifier(self.net, nm.LBC(pattern, end=0.5)) if pattern else None
        if self.sparsifier:
            self.sparsifier.attach(self.optimizer, FOREVER)
            go_to(self.sparsifier, progress)

    def step(self, x: Tensor, y: Tensor) -> float:
        """Seconds per training step."""
        self._wait()
        start = time.perf_counter()
        with self.autocast:
            loss = F.cross_entropy(self.net(x), y)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self._wait()
        return time.perf_counter() - start

    def removal(self, x: Tensor, y: Tensor) -> float:
        """Seconds of a step that removes combinations in every layer (the median of three such steps)."""
        seconds = []
        for progress in (0.1, 0.2, 0.3):
            go_to(self.sparsifier, progress)
            seconds.append(self.step(x, y))
        return statistics.median(seconds)

    def state_bytes(self) -> float:
        assert self.sparsifier is not None
        return self.sparsifier.state_bytes() / sum(row.weights for row in self.sparsifier.plan.sparse)

    def _wait(self) -> None:
        if self.gpu:
            torch.cuda.synchronize()


if __name__ == "__main__":
    main()
