"""Fine-tunes pretrained models dense and sparse: the accuracy cost of patterns, by method, over paired seeds.

    python experiments/pretrained.py efficientnet            # writes results/pretrained-efficientnet.json
    python experiments/pretrained.py minilm --seeds 0 1      # the first two seeds

All arms of a seed start from the same pretrained weights and the same new classifier, and see the same batches:

    dense     fine-tuned without sparsity
    oneshot   the dense result, magnitude mask, no training after it (batch norm statistics are re-estimated)
    asp       the dense result, magnitude mask, then the whole fine-tuning again with the fixed mask: ASP's recipe
              (Mishra et al. 2021, arXiv 2104.08378), which thus sees the data TWICE as often as the others
    srste     SR-STE during the one fine-tuning
    lbc       LBC during the one fine-tuning
    lbc-after the dense result, then LBC during a second fine-tuning: like asp, it sees the data TWICE

Finished arms are kept, and the results file is written after each: stop at any time and run the command again. Several
processes with the same command share the work.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from filelock import FileLock, Timeout

from nmlearn.lab.train import run_files as files
from nmlearn.lab.train.environment import environment
from nmlearn.lab.train.statistics import interval

MODELS = {"efficientnet": "pretrained_efficientnet", "minilm": "pretrained_minilm"}
METHODS = ("oneshot", "asp", "srste", "lbc", "lbc-after")
FROM_DENSE = {"oneshot": "oneshot", "asp": "oneshot", "lbc-after": "lbc"}  # and the method they continue with


@dataclass(frozen=True)
class Arm:
    """One row of one seed; ``pattern`` is None for dense."""

    method: str
    pattern: str | None
    seed: int

    @property
    def name(self) -> str:
        """The name of its folder."""
        pattern = f"-{self.pattern.replace(':', 'of')}" if self.pattern else ""
        return f"{self.method}{pattern}-s{self.seed}"

    @property
    def from_dense(self) -> bool:
        """Whether it starts from the weights of the same seed's dense arm."""
        return self.method in FROM_DENSE

    @property
    def learns_by(self) -> str:
        """The name of the method that it trains with."""
        return FROM_DENSE.get(self.method, self.method)


class FineTuning(Protocol):
    """The interface of a model's file."""

    recipe: dict[str, Any]
    """All settings, for the results file."""

    def run(self, arm: Arm, folder: Path, dense: Path) -> dict[str, Any]:
        """Train the arm and save folder/model/model.safetensors; ``dense`` is the folder of the seed's dense arm.

        Returns:
            accuracy (0..1), loss (nats), seconds (of training) and any further values for the results.
        """


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=list(MODELS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--patterns", nargs="+", default=["2:4", "1:4", "2:8"])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--out", type=Path, help="folder for the runs (default: runs/pretrained-MODEL)")
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="other sizes, e.g. train=4000")
    parser.add_argument("--lbc", nargs="*", default=[], metavar="KEY=VALUE", help="other options of LBC")
    parser.add_argument("--held-out", action="store_true", help="evaluate on held-out training examples, for tuning")
    given = parser.parse_args()
    torch.set_num_threads(1)
    out = given.out or Path("runs") / f"pretrained-{given.model}"
    tuning = importlib.import_module(MODELS[given.model]).fine_tuning(
        sizes(given.set), options(given.lbc), given.held_out
    )
    arms = [
        Arm(method, pattern, seed)
        for seed in given.seeds
        for method, pattern in [("dense", None), *((m, p) for p in given.patterns for m in given.methods)]
    ]
    refuse_other(out / "recipe.json", tuning.recipe)
    while (arm := next_arm(arms, out)) is not None:
        with arm as one:
            finish(tuning, one, out)
        files.write_json(given.results / f"pretrained-{given.model}.json", results(given.model, tuning.recipe, out))


def sizes(given: list[str]) -> dict[str, int]:
    return {key: int(value) for key, _, value in (each.partition("=") for each in given)}


def options(given: list[str]) -> dict[str, Any]:
    pairs = (each.partition("=") for each in given)
    return {key: float(value) if value.replace(".", "").isdigit() else value for key, _, value in pairs}


def refuse_other(path: Path, recipe: dict[str, Any]) -> None:
    """Refuse to mix arms of different settings in one table."""
    if path.exists() and files.read_json(path) != recipe:
        raise SystemExit(f"{path} has other settings: give another --out")
    files.write_json(path, recipe)


def next_arm(arms: list[Arm], out: Path) -> contextlib.AbstractContextManager[Arm] | None:
    """The first arm that is not finished, not waiting for its dense arm and not locked by another process, or None."""
    for arm in arms:
        dense = Arm("dense", None, arm.seed)
        ready = not arm.from_dense or result_path(dense, out).exists()
        if ready and not result_path(arm, out).exists():
            lock = open_lock(out / "locks" / arm.name)
            if lock is not None and not result_path(arm, out).exists():  # it may have been finished meanwhile
                return held(arm, lock)
    return None


@contextlib.contextmanager
def held(arm: Arm, lock: FileLock) -> Iterator[Arm]:
    try:
        yield arm
    finally:
        lock.release()


def open_lock(path: Path) -> FileLock | None:
    """The acquired lock; None if another process holds it. The end of a process releases it too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return None
    return lock


def finish(tuning: FineTuning, arm: Arm, out: Path) -> None:
    """Run an arm, then write its result."""
    told = environment(torch.device("cpu"))
    found = tuning.run(arm, out / "runs" / arm.name, out / "runs" / Arm("dense", None, arm.seed).name)
    row = {"method": arm.method, "pattern": arm.pattern, "seed": arm.seed, "folder": arm.name, **found}
    files.write_json(result_path(arm, out), row | {"environment": told})
    print(f"{arm.name}: accuracy {found['accuracy']:.4f}, {found['seconds']:.0f} s", flush=True)


def result_path(arm: Arm, out: Path) -> Path:
    return out / "runs" / arm.name / "result.json"


def results(model: str, recipe: dict[str, Any], out: Path) -> dict[str, Any]:
    """The contents of the results file: all finished arms, including those of other calls."""
    rows = [files.read_json(path) for path in sorted(out.glob("runs/*/result.json"))]
    told = [row.pop("environment") for row in rows]
    for row, each in zip(rows, told, strict=True):
        row |= {key: each[key] for key in ("source_commit", "started")}
    rows.sort(key=lambda row: (row["seed"], row["pattern"] or "", row["method"]))
    return {
        "what": "pretrained",
        "model": model,
        "recipe": recipe,
        "environment": told[0],  # of the first arm by name; each run records its own commit
        "runs": rows,
        "table": table(rows),
    }


def table(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Accuracy by method and pattern, and its paired difference from dense, for seeds whose dense arm has finished."""
    dense = {row["seed"]: row["accuracy"] for row in rows if row["method"] == "dense"}
    cells: dict[tuple[str, str | None], dict[int, float]] = {}
    for row in rows:
        if row["seed"] in dense:
            cells.setdefault((row["method"], row["pattern"]), {})[row["seed"]] = row["accuracy"]
    return [
        {"method": method, "pattern": pattern, "seeds": sorted(cell)}
        | dict(zip(("accuracy_mean", "accuracy_low", "accuracy_high"), interval(list(cell.values())), strict=True))
        | dict(
            zip(
                ("gap_mean", "gap_low", "gap_high"),
                interval([value - dense[seed] for seed, value in cell.items()]) if pattern else (None, None, None),
                strict=True,
            )
        )
        for (method, pattern), cell in cells.items()
    ]


if __name__ == "__main__":
    main()
