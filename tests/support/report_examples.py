"""Run folders and comparisons as training writes them, with plausible numbers, for the tests of reports."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

COMBINATIONS = {"2:4": 6, "1:4": 4, "1:8": 8, "1:16": 16, "4:8": 70}
ENVIRONMENT = {
    "nmlearn": "0.1.0",
    "torch": "2.13.0+cpu",
    "python": "3.11.7",
    "platform": "Linux-6.1.0-x86_64-with-glibc2.36",
    "cpu": "Example CPU @ 2.60GHz",
    "threads": 2,
    "device": "cpu",
    "source_commit": "0123456789abcdef0123456789abcdef01234567",
    "started": "2026-01-31T12:00:00+00:00",
}
CONFIG = """data:
  name: {data}
  options:
    augment: crop-flip
model:
  name: {model}
method:
  name: {method}
  pattern: "{pattern}"
epochs: {epochs}
batch_size: 128
optim:
  name: sgd
  lr: 0.1
seed: {seed}
"""


def resnet20() -> list[dict[str, Any]]:
    """The plan's rows: 20 sparse convolutions, stem and classifier dense."""
    rows = [_row("conv1", "Conv2d", [16, 3, 3, 3], None, "3 input channels, not a multiple of 4")]
    for stage, width in enumerate((16, 32, 64), 1):
        for block in range(3):
            inner = width if block or stage == 1 else width // 2
            rows.append(_row(f"layer{stage}.{block}.conv1", "Conv2d", [width, inner, 3, 3], "2:4"))
            rows.append(_row(f"layer{stage}.{block}.conv2", "Conv2d", [width, width, 3, 3], "2:4"))
            if stage > 1 and block == 0:
                rows.append(_row(f"layer{stage}.0.shortcut.0", "Conv2d", [width, inner, 1, 1], "2:4"))
    rows.append(_row("fc", "Linear", [10, 64], None, "classifier, left dense by default as in the paper"))
    return rows


def _row(name: str, kind: str, shape: list[int], pattern: str | None, reason: str = "") -> dict[str, Any]:
    return {
        "name": name,
        "kind": kind,
        "shape": shape,
        "pattern": pattern,
        "reason": reason or "taken by default",
        "elimination": "combination" if pattern else "",
        "combinations": COMBINATIONS[pattern] if pattern else None,
        "weights": math.prod(shape),
    }


def write_run(
    folder: Path,
    *,
    method: str = "lbc",
    pattern: str = "2:4",
    seed: int = 0,
    accuracy: float = 0.9172,
    rows: list[dict[str, Any]] | None = None,
    epochs: int = 120,
    steps_per_epoch: int = 390,
    done: float = 1.0,
    model: str = "resnet20",
    data: str = "cifar10",
) -> Path:
    """A run's folder. `done` below 1 stops there, in the middle of a line."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = resnet20() if rows is None else rows
    rows = [
        {**row, "pattern": pattern, "combinations": COMBINATIONS[pattern]} if row["pattern"] else row for row in rows
    ]
    settings = {"method": method, "pattern": pattern, "seed": seed, "model": model, "data": data, "epochs": epochs}
    (folder / "config.yaml").write_text(CONFIG.format(**settings))
    (folder / "env.json").write_text(json.dumps(ENVIRONMENT))
    (folder / "plan.json").write_text(json.dumps({"rows": rows}))
    total = epochs * steps_per_epoch
    events = _events(random.Random(seed), method, rows, accuracy, epochs, steps_per_epoch)
    kept = [event for event in events if event["step"] <= done * total]
    if done >= 1:
        summary = {**kept[-1], **settings, "pattern": None if method == "dense" else pattern}
        (folder / "summary.json").write_text(json.dumps(summary))
    else:
        kept = [event for event in kept if event["event"] != "final"]
    text = "".join(json.dumps(event) + "\n" for event in kept)
    (folder / "metrics.jsonl").write_text(text if done >= 1 else text + '{"event": "train", "st')
    return folder


def _events(
    chance: random.Random, method: str, rows: list[dict[str, Any]], accuracy: float, epochs: int, steps_per_epoch: int
) -> list[dict[str, Any]]:
    total, seconds = epochs * steps_per_epoch, 0.0
    start = {"total_steps": total, "resumed": False, "train_size": 50000, "eval_size": 10000}
    events: list[dict[str, Any]] = [
        {"event": "start", "step": 0, "epoch": 0, **start, "steps_per_epoch": steps_per_epoch}
    ]
    speeds = {row["name"]: chance.uniform(1.5, 5) for row in rows}
    density_before = 1.0
    for step in range(0, total + 1, max(1, steps_per_epoch // 8)):
        p, epoch = step / total, step / steps_per_epoch
        seconds += 2.1
        if step:
            loss = 0.05 + 2.2 * math.exp(-5 * p) + abs(chance.gauss(0, 0.05))
            rate = 0.1 * min(1.0, epoch / 2) * (1 + math.cos(math.pi * p)) / 2
            speed = {"examples_per_second": 4200.0, "seconds": seconds}
            events.append({"event": "train", "step": step, "epoch": epoch, "loss": loss, "lr": rate, **speed})
        if method != "dense" and step % (steps_per_epoch // 2 or 1) < steps_per_epoch // 8:
            event = _sparsity(step, p, rows, speeds, method)
            event["mask_change"] = abs(density_before - event["density"]) * 1.3
            density_before = event["density"]
            events.append(event)
        if step and step % steps_per_epoch < steps_per_epoch // 8:
            measured = accuracy * (1 - 0.7 * math.exp(-9 * p)) - abs(chance.gauss(0, 0.03)) * (1 - p) ** 0.5
            loss = 0.35 + 1.7 * math.exp(-6 * p) + abs(chance.gauss(0, 0.05)) * (1 - p)
            more = {"accuracy": min(1.0, measured), "bits_per_byte": None, "ema_accuracy": None}
            events.append({"event": "eval", "step": step, "epoch": epoch, "loss": loss, **more})
    final = {"loss": 0.31, "accuracy": accuracy, "bits_per_byte": None, "ema_accuracy": None, "seconds": seconds}
    costs = {"state_bytes_per_weight": 10.0, "training_flops_ratio": 0.62, "density": density_before, "violations": 0}
    events.append({"event": "final", "step": total, **final, **costs})
    return events


def _sparsity(step: int, p: float, rows: list[dict[str, Any]], speeds: dict[str, float], method: str) -> dict[str, Any]:
    layers, left, every = {}, 0.0, 0
    for row in rows:
        if row["pattern"]:
            n, m = map(int, row["pattern"].split(":"))
            open_share = max(0.0, 1 - p / 0.5)
            most = row["combinations"]
            survivors = min(most, 1 + math.ceil((most - 1) * open_share**3))
            density = 1.0 if survivors == most else n / m + (1 - n / m) * open_share ** speeds[row["name"]]
            survivors_told = survivors if method == "lbc" else None
            layers[row["name"]] = {"density": density, "survivors": survivors_told, "combinations": most}
            left += density * row["weights"]
            every += row["weights"]
    return {"event": "sparsity", "step": step, "progress": p, "density": left / every, "layers": layers}


METHODS = {"dense": 0.0, "oneshot": -0.021, "gradual": -0.012, "srste": -0.0105, "lbc": -0.009}
HARDNESS = {"1:4": 0.5, "1:8": 1.2, "1:16": 2.4}
SECONDS = {"dense": 61.0, "oneshot": 62.5, "gradual": 63.0, "srste": 88.0, "lbc": 66.5}
FLOPS = {"dense": 1.0, "oneshot": 0.62, "gradual": 0.55, "srste": 0.66, "lbc": 0.5}


def compared_runs(seeds: int = 5) -> list[dict[str, Any]]:
    """The runs of 5 methods at 3 patterns."""
    runs = []
    for seed in range(seeds):
        chance = random.Random(seed)
        base = 0.912 + chance.gauss(0, 0.0017)
        for method, loss in METHODS.items():
            for pattern in [None] if method == "dense" else list(HARDNESS):
                gap = loss * HARDNESS[pattern] + chance.gauss(0, 0.0018) if pattern else 0.0
                part = 1 / int(pattern[2:]) if pattern else 1.0
                runs.append(
                    {
                        "method": method,
                        "pattern": pattern,
                        "seed": seed,
                        "accuracy": base + gap,
                        "loss": 0.26 - 2 * gap,
                        "seconds": SECONDS[method] * chance.uniform(0.98, 1.04),
                        "state_bytes_per_weight": {"dense": 0.0, "oneshot": 1.0, "gradual": 1.0, "srste": 5.0}.get(
                            method, 10.0
                        ),
                        "training_flops_ratio": FLOPS[method] * (0.8 + 0.8 * part) if pattern else 1.0,
                        "density": part,
                    }
                )
    return runs


def write_comparison(folder: Path, *, seeds: int = 5, folders: bool = True, name: str = "results.json") -> Path:
    """A comparison's folder: results.json and, with `folders`, its run folders."""
    from nmlearn.lab.train.statistics import table

    folder.mkdir(parents=True, exist_ok=True)
    runs = compared_runs(seeds)
    record = {
        "name": "fashion-mnist-resnet8",
        "recipe": {"train": {"data": {"name": "fashion-mnist"}, "epochs": 8, "batch_size": 128}, "jobs": 2},
        "source_commit": ENVIRONMENT["source_commit"],
        "environment": ENVIRONMENT,
        "seeds": list(range(seeds)),
        "started": "2026-01-31T12:00:00+00:00",
        "finished": "2026-01-31T13:10:00+00:00",
        "runs": runs,
        "table": table(runs),
    }
    (folder / name).write_text(json.dumps(record, indent=1))
    for run in runs if folders else []:
        pattern = run["pattern"] or "1:4"
        write_run(
            folder / "runs" / f"{run['method']}-{pattern.replace(':', 'of')}-s{run['seed']}",
            method=run["method"],
            pattern=pattern,
            seed=run["seed"],
            accuracy=run["accuracy"],
            epochs=8,
            steps_per_epoch=156,
            data="fashion-mnist",
            model="resnet8",
        )
    return folder
