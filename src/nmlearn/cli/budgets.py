"""The patterns that ``nmlearn plan`` chooses for a budget: the table, and the rules as a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import nmlearn
from nmlearn.cli import console
from nmlearn.lab.train import evaluation, recipe, run_files
from nmlearn.lab.train.ranks import joined
from nmlearn.model.plan import Rule

if TYPE_CHECKING:
    from nmlearn.cli.plan import PlanConfig

_UNTRAINED = "These losses are of untrained weights, and say little: give --model.weights, say of a dense run."


def run(config: PlanConfig, model: Any, task: Any) -> None:
    """Choose the patterns, print the table, and write the rules if a file was asked for.

    Args:
        model: on a CPU.
        task: the data; None for images and tokens that are made up, and losses of magnitudes.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    with joined(config.device) as ranks:
        batches = (
            None if task is None else [(x,) for x in evaluation.inputs(task, config.examples, ranks.device, config)]
        )
        inputs = made_up(config) if config.input_shape else None
        example = evaluation.to_device(inputs, ranks.device, config) if batches is None else batches[0][0][:1]
        memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
        found = nmlearn.allocate(
            model.to(device=ranks.device, memory_format=memory_format),
            (example,),
            budget=config.budget,
            patterns=config.patterns or None,
            criterion=config.criterion,
            batches=batches,
            rules=dict(config.method.rules),
        )
    for line in str(found).split("\n"):  # a wide table that can be searched, and no folded cells
        console.out.print(line, soft_wrap=True)
    if config.model.weights is None and not config.model.options.get("pretrained"):
        console.out.print(_UNTRAINED, style="yellow")
    if config.write is not None:
        rules = {name: _plain(rule) for name, rule in found.items()}
        run_files.write_text(Path(config.write), recipe.written({"method": {"rules": rules}}))
        console.out.print(f"rules  {config.write}", soft_wrap=True)


def made_up(config: PlanConfig) -> torch.Tensor:
    """One example of the shape that was given: noise for an image, the first token for a text."""
    shape = (1, *(config.input_shape or ()))
    return torch.randn(shape) if len(shape) == 4 else torch.zeros(shape, dtype=torch.int64)


def _plain(rule: Rule) -> str | None:
    return None if rule is None else str(rule)
