"""``nmlearn plan``: show which weights would become sparse, without training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nmlearn.cli import console, parsing
from nmlearn.errors import ConfigError, DataError
from nmlearn.lab.train.config import TrainConfig

DESCRIPTION = """Show which weights of a model would become sparse, with which pattern, and why the others stay dense.

Accepts the options and recipes of `nmlearn train`. The data determines the model's inputs and outputs, unless
--input_shape and --classes are given."""

# Unused without training, but part of its recipes.
HIDDEN = ("out", "resume", "tensorboard", "log_every", "eval_every", "checkpoint_every", "eval_batch_size", "threads")


@dataclass(frozen=True)
class PlanConfig(TrainConfig):
    """A training run that is only planned."""

    input_shape: tuple[int, ...] | None = None
    """Shape of one input, e.g. [3,224,224]; with classes, no data is read."""
    classes: int | None = None
    """Number of outputs."""


def run(arguments: list[str]) -> int:
    """Show the plan."""
    config = parsing.parse(PlanConfig, "plan", arguments, DESCRIPTION, HIDDEN)
    import nmlearn
    from nmlearn import methods

    method = methods.build(config.method.name, config.method.pattern, **config.method.options)
    plan = nmlearn.Sparsifier(_model(config), method, rules=dict(config.method.rules)).plan
    console.out.print(_table(plan))
    console.out.print()
    console.out.print(plan.summary())
    return 0


def _model(config: PlanConfig) -> Any:
    from nmlearn.lab import models
    from nmlearn.lab.train.setting import build_model, load_task

    if config.input_shape is None and config.classes is None:
        try:
            task = load_task(config.data)
        except DataError as error:
            fix = f"{error.fix}; or give, for instance, {_without_data(config)} to plan without data"
            raise DataError(where=error.where, given=error.given, wrong=error.wrong, fix=fix) from error
        return build_model(config.model, task)
    if config.input_shape is None or config.classes is None:
        raise ConfigError(
            where="plan",
            given="one of --input_shape and --classes",
            wrong="both are needed",
            fix=f"give both, for instance {_without_data(config)}, or neither, to take them from the data",
        )
    kind = "image" if len(config.input_shape) == 3 else "language" if config.model.name == "gpt" else "text"
    return models.build(
        config.model.name, classes=config.classes, input_shape=config.input_shape, kind=kind, **config.model.options
    )


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
