"""``nmlearn train``: train with progress bars and write the report."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from nmlearn.cli import console, parsing
from nmlearn.cli.bars import TrainBar
from nmlearn.errors import WriteError
from nmlearn.lab.train.config import TrainConfig

DESCRIPTION = """Train a model and learn N:M sparsity during training.

Without options, a 2:4 sparse ResNet-8 is trained on the Fashion-MNIST images that come with nmlearn. The same command
resumes an interrupted run."""


def run(arguments: list[str]) -> int:
    """Run the training."""
    config = parsing.parse(TrainConfig, "train", arguments, DESCRIPTION)
    # Only after the options are checked: this takes a second or two.
    from nmlearn.lab.train.loop import train

    if os.environ.get("RANK", "0") != "0":
        train(config)
        return 0
    with TrainBar(config) as bar:
        summary = train(config, bar)
    if not bar.started:
        console.out.print(f"{config.folder} had already finished; --resume none trains it again.", soft_wrap=True)
    _show(summary, config, _report(Path(config.folder), had_finished=not bar.started))
    return 0


def _report(folder: Path, had_finished: bool) -> Path:
    import nmlearn.lab.report

    try:
        return nmlearn.lab.report.write(folder)
    except WriteError:  # a finished run may lie where nothing can be written; its report says the same
        if had_finished and (folder / "report.html").is_file():
            return folder / "report.html"
        raise


def _show(summary: dict[str, Any], config: TrainConfig, report: Path) -> None:
    table = console.table("", "")
    if summary["accuracy"] is not None:
        table.add_row("accuracy", console.percent(summary["accuracy"]))
    if summary.get("ema_accuracy") is not None:
        table.add_row("accuracy of the EMA", console.percent(summary["ema_accuracy"]))
    if summary.get("bits_per_byte") is not None:
        table.add_row("bits per byte", console.number(summary["bits_per_byte"], 4))
    for name, precision in console.precisions(summary):
        table.add_row(name, console.percent(precision))
    table.add_row("loss", console.number(summary["loss"], 4))
    if config.method.name != "dense":
        table.add_row("density", f"{console.percent(summary['density'])} of the sparse layers, every group verified")
        table.add_row(
            "state while training", f"{console.number(summary['state_bytes_per_weight'], 1)} bytes per sparse weight"
        )
        ratio = console.number(summary["training_flops_ratio"])
        table.add_row("training arithmetic", f"{ratio} of dense, in the sparse layers")
    table.add_row("training time", console.duration(summary["seconds"]))
    table.add_row("model", str(Path(config.folder) / "model" / "model.safetensors"))
    table.add_row("report", str(report))
    table.show_header = False
    console.out.print(table)
