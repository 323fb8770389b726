"""Compares methods at equal optimizer steps, each with its own learning rate, with and without a teacher.

    python experiments/leaderboard.py minilm                    # writes results/leaderboard-minilm.json
    python experiments/leaderboard.py minilm --patterns 1:4 --methods lbc sparsegpt --seeds 0 1

Every arm, dense included, is one call of nm.sparsify: the same steps, AdamW, schedule and batches of its seed. First
each method tries three learning rates at every pattern, on seed 0 and held-out training examples; the best one is used
for the runs on the test examples. The teacher is the pretrained network, by its hidden states.
results/leaderboard.json has the rows of all tasks: the gap to dense without a teacher, paired by seed, with its 95 %
interval.

Finished arms are kept, and results are written after each: stop at any time and run the command again. Several
processes with the same command share the work.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

import nmlearn as nm
from nmlearn.lab.train import run_files as files
from nmlearn.lab.train.environment import environment
from nmlearn.lab.train.statistics import interval
from pretrained import held, open_lock

TASKS = {"minilm": "leaderboard_minilm"}
METHODS: dict[str, Callable[[str], nm.Method]] = {
    "dense": nm.Dense,
    "magnitude": nm.OneShot,
    "wanda": nm.Wanda,
    "ria": nm.RIA,
    "sparsegpt": lambda pattern: nm.SparseGPT(pattern, refit="pcg"),
    "alps": lambda pattern: nm.ALPS(pattern, refit="pcg"),
    "dsnot": nm.DSnoT,
    "r2dsnot": nm.R2DSnoT,
    "gradual": lambda pattern: nm.Gradual(pattern, end=0.2),
    "srste": nm.SRSTE,
    "sste": nm.SSTE,
    "maxq": nm.MaxQ,
    "bimask": nm.BiMask,
    "maskllm": nm.MaskLLM,
    "lbc": lambda pattern: nm.LBC(pattern, prior="magnitude", end=0.2),
    "lbc-compensated": lambda pattern: nm.LBC(pattern, prior="magnitude", end=0.2, compensation="pcg"),
    "lbc-output": lambda pattern: nm.LBC(pattern, criterion="output", end=0.2, compensation="pcg"),
}
DEFAULT = ("lbc", "lbc-output", "sparsegpt", "srste")


class Task(Protocol):
    """The interface of a task's file."""

    name: str
    steps: int
    rates: tuple[float, ...]
    """The learning rates of the search."""
    rules: dict[str, str | None]
    hidden: dict[str, float]
    """What a teacher shows; see nm.Distillation."""
    recipe: dict[str, Any]
    """All settings, for the results file."""

    def start(self, seed: int) -> nn.Module: ...

    def batches(self, seed: int) -> list[Any]:
        """Training batches in this seed's order."""

    def inputs(self, batch: Any) -> Any: ...

    def loss(self, model: nn.Module, batch: Any) -> Tensor: ...

    def score(self, model: nn.Module, held_out: bool) -> float:
        """Points (higher is better) on held-out training examples, or on the test examples."""


@dataclass(frozen=True)
class Arm:
    """One run. ``pattern`` is "" for dense."""

    method: str
    pattern: str
    teacher: bool
    rate: float
    seed: int
    searching: bool = False

    @property
    def name(self) -> str:
        """The name of its file."""
        parts = [self.method, self.pattern.replace(":", "of"), "teacher" if self.teacher else ""]
        parts += [f"{self.rate:g}", f"s{self.seed}", "search" if self.searching else ""]
        return "-".join(part for part in parts if part)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=list(TASKS))
    parser.add_argument("--patterns", nargs="+", default=["2:4", "1:4"])
    parser.add_argument("--methods", nargs="+", default=list(DEFAULT), choices=list(METHODS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--teacher", choices=["both", "yes", "no"], default="both", help="for the sparse arms")
    parser.add_argument("--out", type=Path, default=Path("runs/leaderboard"))
    parser.add_argument("--results", type=Path, default=Path("results"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    task: Task = importlib.import_module(TASKS[given.task]).task()
    out = given.out / task.name
    teachers = {"both": (True, False), "yes": (True,), "no": (False,)}[given.teacher]
    cells = [("dense", "", teacher) for teacher in (False, True)]
    cells += [(m, p, t) for p in given.patterns for m in given.methods if m != "dense" for t in teachers]
    while (arm := next_arm(task, cells, given.seeds, out)) is not None:
        with arm as one:
            finish(task, one, out)
        write(task, out, given.results)
    write(task, out, given.results)


def next_arm(task: Task, cells: list[tuple[str, str, bool]], seeds: list[int], out: Path) -> Any:
    """The first arm that is neither finished nor locked by another process, or None. Searches come first."""
    for arm in [*searches(task, cells), *finals(task, cells, seeds, out)]:
        if not path(arm, out).exists():
            lock = open_lock(out / "locks" / arm.name)
            if lock is not None and not path(arm, out).exists():
                return held(arm, lock)  # type: ignore[arg-type]
    return None


def searches(task: Task, cells: list[tuple[str, str, bool]]) -> list[Arm]:
    return [Arm(*cell, rate, 0, searching=True) for cell in cells for rate in task.rates]


def finals(task: Task, cells: list[tuple[str, str, bool]], seeds: list[int], out: Path) -> Iterator[Arm]:
    for seed in seeds:
        for cell in cells:
            tried = [Arm(*cell, rate, 0, searching=True) for rate in task.rates]
            if all(path(arm, out).exists() for arm in tried):
                best = max(tried, key=lambda arm: files.read_json(path(arm, out))["score"])
                yield replace(best, seed=seed, searching=False)


def path(arm: Arm, out: Path) -> Path:
    return out / f"{arm.name}.json"


def finish(task: Task, arm: Arm, out: Path) -> None:
    """Run an arm, then write its result."""
    torch.manual_seed(arm.seed)
    model, told = task.start(arm.seed), environment(torch.device("cpu"))
    begun, cpu = time.perf_counter(), time.process_time()
    done = nm.sparsify(
        model,
        method=METHODS[arm.method](arm.pattern or "2:4"),
        batches=task.batches(arm.seed),
        inputs=task.inputs,
        loss=task.loss,
        steps=task.steps,
        lr=arm.rate,
        rules=task.rules,
        distillation=nm.Distillation("copy", hidden=task.hidden) if arm.teacher else False,
    )
    spent = {"seconds": time.perf_counter() - begun, "cpu_seconds": time.process_time() - cpu}
    row = asdict(arm) | spent | {"score": task.score(model, arm.searching), "change": done.change}
    files.write_json(path(arm, out), row | {"environment": told})
    print(f"{arm.name}: {row['score']:.2f}, {spent['cpu_seconds']:.0f} s of processor time", flush=True)


def write(task: Task, out: Path, results: Path) -> None:
    """The results of a task, and the rows of all tasks."""
    runs = [files.read_json(file) for file in sorted(out.glob("*.json"))]
    told = [run.pop("environment") for run in runs]
    for run, each in zip(runs, told, strict=True):
        run |= {key: each[key] for key in ("source_commit", "started", "cpu")}
    content = {
        "what": "leaderboard runs",
        "task": task.name,
        "recipe": task.recipe,
        "environment": told[0],
        "runs": runs,
    }
    files.write_json(results / f"leaderboard-{task.name}.json", content | {"rows": rows(task.name, runs)})
    found = [files.read_json(file) for name in TASKS if (file := results / f"leaderboard-{name}.json").exists()]
    every = [row for one in found for row in one["rows"]]
    files.write_json(
        results / "leaderboard.json", {"what": "leaderboard", "environment": found[0]["environment"], "rows": every}
    )


def rows(task: str, runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each method, pattern and teacher: the mean gap to dense of the same seed, without a teacher."""
    finals = [run for run in runs if not run["searching"]]
    dense = {run["seed"]: run["score"] for run in finals if run["method"] == "dense" and not run["teacher"]}
    cells: dict[tuple[str, str, bool], list[dict[str, Any]]] = {}
    for run in finals:
        if run["seed"] in dense:
            cells.setdefault((run["pattern"], run["method"], run["teacher"]), []).append(run)
    found = []
    for (pattern, method, teacher), some in sorted(cells.items()):
        gap, low, high = interval([run["score"] - dense[run["seed"]] for run in some])
        found.append(
            {
                "task": task,
                "pattern": pattern or None,
                "method": method + ("+teacher" if teacher else ""),
                "gap": gap,
                "gap_low": low,
                "gap_high": high,
                "seeds": len(some),
                "equal_steps": True,
                "seconds": statistics.median(run["seconds"] for run in some),
                "rate": some[0]["rate"],
                "score": statistics.fmean(run["score"] for run in some),
            }
        )
    return found


if __name__ == "__main__":
    main()
