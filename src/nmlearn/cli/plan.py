"""``nmlearn plan``: show which weights would become sparse, without training, or choose their patterns for a budget."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from nmlearn.cli import console, parsing
from nmlearn.errors import ConfigError, DataError
from nmlearn.lab.train.config import TrainConfig, check_pattern

DESCRIPTION = """Show which weights of a model would become sparse, with which pattern, and why the others stay dense.

Accepts the options and recipes of `nmlearn train`. The data determines the model's inputs and outputs, unless
--input_shape and --classes are given.

With one of --parameters, --bytes, --flops and --speedup the patterns are chosen: each weight gets one of --patterns or
stays dense, such that the budget is kept and the least is lost. Give --model.weights: losses of untrained weights say
little."""

# Unused without training, but part of its recipes.
HIDDEN = ("out", "resume", "tensorboard", "log_every", "eval_every", "checkpoint_every", "eval_batch_size")


@dataclass(frozen=True)
class PlanConfig(TrainConfig):
    """A training run that is only planned."""

    input_shape: tuple[int, ...] | None = None
    """Shape of one input, e.g. [3,224,224]; with classes, no data is read."""
    classes: int | None = None
    """Number of outputs."""
    parameters: float | None = None
    """Budget: the share of the dense model's parameters to keep, e.g. 0.3."""
    bytes: float | None = None
    """Budget: the share of the dense model's bytes in a packed file, e.g. 0.3."""
    flops: float | None = None
    """Budget: the share of the dense model's multiply-adds, e.g. 0.3."""
    speedup: float | None = None
    """Budget: how many times faster for one example on this machine, by measured times of layers, e.g. 2.0."""
    patterns: tuple[str, ...] = ()
    """Patterns to choose from, in addition to dense; default: 2:4, 1:4, 1:8 and 1:16, as far as they fit."""
    criterion: Literal["output", "model", "magnitude"] | None = None
    """What a loss is of: the output of a layer, the output of the model, or magnitude; default: model, or magnitude
    without data."""
    examples: int = 256
    """Training examples to calibrate with."""
    write: str | None = None
    """File for the rules that a budget led to: `nmlearn train --config RECIPE.yaml --config FILE` follows them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for pattern in self.patterns:
            check_pattern("patterns", pattern)
        if len(self.budget) > 1 or (self.write is not None and not self.budget):
            raise ConfigError(
                where="write" if not self.budget else "budget",
                given=", ".join(self.budget) or self.write,
                wrong="rules are chosen for one budget",
                fix="give one of --parameters, --bytes, --flops and --speedup",
            )
        if self.examples < 1:
            raise ConfigError(where="examples", given=self.examples, wrong="must be at least 1", fix="give 256")

    @property
    def budget(self) -> dict[Any, float]:
        """The budgets that are given."""
        values = {name: getattr(self, name) for name in ("parameters", "bytes", "flops", "speedup")}
        return {name: value for name, value in values.items() if value is not None}


def run(arguments: list[str]) -> int:
    """Show the plan."""
    config = parsing.parse(PlanConfig, "plan", arguments, DESCRIPTION, HIDDEN)
    if config.budget:
        from nmlearn.cli import budgets

        budgets.run(config, *_built(config))
        return 0
    import nmlearn
    from nmlearn import methods

    method = methods.build(config.method.name, config.method.pattern, **config.method.options)
    model, task = _built(config)
    plan = nmlearn.Sparsifier(model, method, rules=dict(config.method.rules), example=(_example(config, task),)).plan
    console.out.print(_table(plan))
    console.out.print()
    console.out.print(plan.summary())
    return 0


def _built(config: PlanConfig) -> tuple[Any, Any]:
    """The model, and the data; None for a model that is built without."""
    from nmlearn.lab import models
    from nmlearn.lab.train.setting import build_model, load_task, load_weights

    if config.input_shape is None and config.classes is None:
        try:
            task = load_task(config.data)
        except DataError as error:
            fix = f"{error.fix}; or give, for instance, {_without_data(config)} to plan without data"
            raise DataError(where=error.where, given=error.given, wrong=error.wrong, fix=fix) from error
        return build_model(config.model, task), task
    if config.input_shape is None or config.classes is None:
        raise ConfigError(
            where="plan",
            given="one of --input_shape and --classes",
            wrong="both are needed",
            fix=f"give both, for instance {_without_data(config)}, or neither, to take them from the data",
        )
    kind = "image" if len(config.input_shape) == 3 else "language" if config.model.name == "gpt" else "text"
    model = models.build(
        config.model.name,
        classes=config.classes,
        input_shape=config.input_shape,
        kind=kind,
        **config.model.options,
    )
    if config.model.weights is not None:
        load_weights(model, Path(config.model.weights))
    return model, None


def _example(config: PlanConfig, task: Any) -> Any:
    """Inputs of the model: those of an evaluation example, or made up where no data is read."""
    import torch

    from nmlearn.cli import budgets
    from nmlearn.lab.train import evaluation

    return budgets.made_up(config) if task is None else evaluation.example(task, torch.device("cpu"), config)


def _without_data(config: PlanConfig) -> str:
    """An example of the two options that replace data."""
    tokens = config.model.name in ("gpt", "text-transformer")
    return "--input_shape '[128]' --classes 256" if tokens else "--input_shape '[3,224,224]' --classes 1000"


def _table(plan: Any) -> Any:
    table = console.table("weight", "layer", "shape", "pattern", "combinations / why dense")
    table.columns[0].overflow = "fold"
    for row in plan.rows:
        sparse = row.pattern is not None
        how = f"{row.combinations:,}, removed by {row.elimination}" if row.elimination else row.reason
        table.add_row(
            row.name,
            row.kind,
            "×".join(map(str, row.shape)),
            str(row.pattern) if sparse else "dense",
            how,
            style=None if sparse else "dim",
        )
    return table
