r"""Step time with small layers and AdamW relative to dense: interleaved in one run, medians and quartiles of pairs.

    python experiments/step_time_small.py --out results/step_time_small_cpu_zen4.json

The file is named by the processor, as those of step_time.py are; a table of this name in docs/benchmarks.md shows it.
nanoGPT's size for CPUs: 4 layers of width 128, 64 tokens, batches of 12, 65 characters, AdamW that is not fused. A copy
of the network for every method and moment of its schedule processes the same batch in turn, in an order that rotates;
a round's times are divided by its dense one. Steps that change masks are not among them. Calls of functions are counted
as well, in a step behind the rounds: no noise reaches them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import nmlearn as nm
from nmlearn.lab.models.gpt import small_gpt
from nmlearn.lab.train.environment import environment
from step_time import FOREVER, go_to

LENGTH, BATCH, VOCABULARY = 64, 12, 65
CASES: dict[str, tuple[nm.methods.Method | None, float]] = {
    "dense": (None, 0.0),
    "lbc, before": (nm.LBC("2:4"), 0.0),
    "lbc, during": (nm.LBC("2:4"), 0.2),
    "lbc, after": (nm.LBC("2:4"), 1.0),
    "gradual, during": (nm.Gradual("2:4"), 0.2),
    "gradual, after": (nm.Gradual("2:4"), 1.0),
    "oneshot": (nm.OneShot("2:4"), 0.1),
    "srste": (nm.SRSTE("2:4"), 0.1),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=150)
    parser.add_argument("--fused", action="store_true", help="AdamW(fused=True) in all of them")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = measure(args.rounds, {name: Run(*case, fused=args.fused) for name, case in CASES.items()})
    found = {"what": "small layers", "settings": vars(args) | {"out": str(args.out)}, "rows": rows}
    found |= {"environment": environment(torch.device("cpu"))}
    if args.out:
        args.out.write_text(json.dumps(found, indent=1, default=str) + "\n")


def measure(rounds: int, runs: dict[str, Run]) -> list[dict[str, Any]]:
    x, y = torch.randint(VOCABULARY, (BATCH, LENGTH)), torch.randint(VOCABULARY, (BATCH * LENGTH,))
    times: dict[str, list[float]] = {name: [] for name in runs}
    order = list(runs)
    for run in runs.values():
        run.step(x, y)  # optimizers make their states
    for _ in range(rounds):
        order.append(order.pop(0))
        for name in order:
            times[name].append(runs[name].step(x, y))
    calls = {name: run.calls(x, y) for name, run in runs.items()}
    rows = [_row(name, times[name], times["dense"], calls[name] - calls["dense"]) for name in runs]
    for row in rows:
        print(json.dumps(row))
    return rows


def _row(name: str, times: list[float], dense: list[float], calls: int) -> dict[str, Any]:
    return {
        "case": name,
        "ms": 1e3 * statistics.median(times),
        "ratio_quartiles": statistics.quantiles([a / b for a, b in zip(times, dense, strict=True)], n=4),
        "ratio_of_medians": statistics.median(times) / statistics.median(dense),
        "ratio_of_minima": min(times) / min(dense),
        "calls_more": calls,
    }


class Run:
    """One network with its optimizer, dense or with a method held at one point of its schedule."""

    def __init__(self, method: nm.methods.Method | None, progress: float, *, fused: bool) -> None:
        torch.manual_seed(0)
        self.net: nn.Module = small_gpt(VOCABULARY, (LENGTH,))
        decayed = [[p for p in self.net.parameters() if (p.dim() > 1) == matrix] for matrix in (True, False)]
        groups = [{"params": decayed[0], "weight_decay": 0.1}, {"params": decayed[1], "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, 1e-3, betas=(0.9, 0.99), fused=fused or None)
        if method:
            sparsifier = nm.Sparsifier(self.net, method).attach(self.optimizer, FOREVER)
            go_to(sparsifier, progress)
            sparsifier.skip_step()

    def step(self, x: Tensor, y: Tensor) -> float:
        """Seconds of a training step."""
        start = time.perf_counter()
        loss = F.cross_entropy(self.net(x).flatten(0, 1), y)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return time.perf_counter() - start

    def calls(self, x: Tensor, y: Tensor) -> int:
        """Calls of functions, Python's and C's, in the main thread in a step."""
        count = 0

        def profile(frame: FrameType, event: str, arg: object) -> None:
            nonlocal count
            count += event in ("call", "c_call")

        sys.setprofile(profile)
        self.step(x, y)
        sys.setprofile(None)
        return count


if __name__ == "__main__":
    main()
