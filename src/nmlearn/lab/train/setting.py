"""Builds and connects what a configuration describes: data, model, sparsifier, optimizer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

import nmlearn.lab.data
import nmlearn.lab.models
import nmlearn.methods
from nmlearn.errors import ConfigError, FormatError, PlanError
from nmlearn.files.tensors import load_whole
from nmlearn.lab.data import Task
from nmlearn.lab.train import evaluation, optim, recipe
from nmlearn.lab.train.average import Average
from nmlearn.lab.train.config import DataConfig, ModelConfig, TrainConfig
from nmlearn.lab.train.folder import RunFolder
from nmlearn.lab.train.journal import summary_writer
from nmlearn.lab.train.ranks import Ranks
from nmlearn.learn.distillation import Distillation
from nmlearn.learn.sparsifier import Sparsifier
from nmlearn.methods.method import Method

START = "start"  # the teacher that is the model at the beginning
_SHOWN = 4  # weights that an error names


@dataclass(frozen=True)
class Setting:
    """All parts of one training run.

    Attributes:
        model: the plain module.
        forward: what training calls, i.e. the model or its DDP or compiled wrapper.
        example: inputs of one example, the same in all processes.
        steps_per_epoch, total_steps: optimizer steps.
        part_size: examples that a process computes at once: batch_size / (processes * accumulate).
        distillation: attached, if the recipe names a teacher.
    """

    task: Task
    model: nn.Module
    forward: nn.Module
    example: Any
    sparsifier: Sparsifier
    optimizer: torch.optim.Optimizer
    average: Average | None
    steps_per_epoch: int
    total_steps: int
    part_size: int
    distillation: Distillation | None = None


def setting(config: TrainConfig, ranks: Ranks) -> Setting:
    """Build everything. Initial weights depend only on ``config.seed``; the sparsifier is attached.

    Raises:
        ConfigError, DataError, PlanError, AttachError: a part refuses its settings.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    if config.tensorboard:
        summary_writer()
    part_size = _part_size(config, ranks)
    task = load_task(config.data)
    _check_precision(config, task)
    task.device = ranks.device
    steps_per_epoch = epoch_steps(config, task)
    torch.manual_seed(config.seed)
    model = build_model(config.model, task)
    distillation = _distillation(config, task)
    # From now on the generators are used for dropout, which must differ between processes.
    torch.manual_seed(config.seed + ranks.rank)
    model = model.to(ranks.device)
    if config.channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    method = nmlearn.methods.build(config.method.name, config.method.pattern, **config.method.options)
    example = evaluation.example(task, ranks.device, config)
    sparsifier = _sparsifier(model, method, config, example)
    if distillation is not None:
        distillation.attach(model)  # first: a copy is made of the dense model
    if method.needs != "nothing" and not _sparse(sparsifier):
        sparsifier.apply([(x,) for x in evaluation.inputs(task, config.method.calibrate, ranks.device, config)])
    average = Average(model, config.ema) if config.ema else None
    optimizer = optim.build(model, config.optim)
    total_steps = steps_per_epoch * config.epochs
    forward = _wrapped(model, config, ranks)  # first: attach reads the weights that all ranks share
    sparsifier.attach(optimizer, total_steps, travels=False)
    parts, counts = (task, model, forward, example, sparsifier, optimizer, average), (steps_per_epoch, total_steps)
    return Setting(*parts, *counts, part_size, distillation)


def check(configs: Sequence[TrainConfig]) -> None:
    """Check the settings of several runs before the first one starts.

    Args:
        configs: at least one; they differ in method, pattern and seed.

    Raises:
        ConfigError, DataError, PlanError, ...: a part refuses its settings.
    """
    first = configs[0]
    if first.tensorboard:
        summary_writer()
    methods = {repr(config.method): config.method for config in configs}
    made = [nmlearn.methods.build(each.name, each.pattern, **each.options) for each in methods.values()]
    task = load_task(first.data)
    _check_precision(first, task)
    _part_size(first, Ranks(0, 1, torch.device("cpu")))
    epoch_steps(first, task)
    model = build_model(first.model, task)
    optim.build(model, first.optim)
    example = evaluation.example(task, torch.device("cpu"), first)
    for method in made:
        _sparsifier(model, method, first, example)
    distillation = _distillation(first, task)
    if distillation is not None:
        distillation.check(model)


def _distillation(config: TrainConfig, task: Task) -> Distillation | None:
    """The distillation of a recipe, not attached yet; None without a teacher.

    Raises:
        ConfigError: a folder without a finished run, or a model that refuses its settings.
        FormatError: a file that is missing, or belongs to another model.
    """
    given = config.distillation
    if given.teacher is None:
        return None
    teacher: Any = "copy"
    if given.teacher != START:
        path, model = Path(given.teacher), config.model
        if path.is_dir():
            path, model = _finished(path)
        teacher = build_model(replace(model, weights=None), task)
        load_weights(teacher, path, "distillation.teacher")
        if config.channels_last:
            teacher = teacher.to(memory_format=torch.channels_last)
    return Distillation(teacher, hidden=given.hidden, logits=given.logits, temperature=given.temperature)


def _finished(path: Path) -> tuple[Path, ModelConfig]:
    """The file of a finished run's model, and what builds it."""
    folder = RunFolder(path)
    written = folder.config()
    if written is None or folder.summary() is None:
        fix = "give the folder of a finished run, a safetensors file, or start"
        raise ConfigError(where="distillation.teacher", given=path, wrong="no finished run is there", fix=fix)
    return folder.model, recipe.build(TrainConfig, written, f"{path}: ").model


def _sparsifier(model: nn.Module, method: Method, config: TrainConfig, example: Any) -> Sparsifier:
    """The sparsifier.

    Raises:
        PlanError: no weight would be sparse; it names the first layers and why.
    """
    sparsifier = Sparsifier(model, method, rules=dict(config.method.rules), example=(example,))
    rows = sparsifier.plan.rows
    if not sparsifier.plan.sparse:
        reasons = "; ".join(f"{row.name}: {row.reason}" for row in rows[:_SHOWN])
        more = f"; and {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else ""
        wrong = f"no weight of {config.model.name} would be sparse: {reasons}{more}"
        fix = "give a pattern whose M divides the layers' inputs, such as 2:4, or other rules; nmlearn plan shows all"
        raise PlanError(where="method.pattern", given=method.pattern, wrong=wrong, fix=fix)
    return sparsifier


def _sparse(sparsifier: Sparsifier) -> bool:
    """Whether the weights, say of ``model.weights``, have their zeros already."""
    return not any(row.grouping.violation(row.parameter != 0) for row in sparsifier.plan.sparse)


def _check_precision(config: TrainConfig, task: Task) -> None:
    if task.kind == "detection" and config.precision != "fp32":
        wrong = "a detector's boxes would have 8 bits: steps of 4 pixels from 512 up, of 8 from 1024 up"
        raise ConfigError(where="precision", given=config.precision, wrong=wrong, fix="use fp32 for detectors")


def load_task(config: DataConfig) -> Task:
    """The data of a configuration."""
    return nmlearn.lab.data.load(config.name, config.path, **config.options)


def build_model(config: ModelConfig, task: Task) -> nn.Module:
    """The model of a configuration for a task, with ``config.weights`` and ``config.backbone`` loaded if given."""
    options = dict(config.options)
    if task.kind == "text" and config.name in nmlearn.lab.models.MODELS:
        options.setdefault("vocabulary", task.vocabulary)
    model = nmlearn.lab.models.build(
        config.name, classes=task.classes, input_shape=task.input_shape, kind=task.kind, **options
    )
    if config.backbone is not None:
        load_backbone(model, Path(config.backbone))
    if config.weights is not None:
        load_weights(model, Path(config.weights))
    return model


def load_weights(model: nn.Module, path: Path, where: str = "model.weights") -> None:
    """Load a safetensors file into a model; all keys must match exactly.

    Args:
        where: the setting that names the file, for errors.

    Raises:
        FormatError: the file is missing or not a safetensors file, or its keys or shapes belong to another model.
    """
    fix = "give a safetensors file of the same model, built with the same model.options"
    with _refusing(where, path, model, fix):
        load_whole(model, _tensors(path))


def load_backbone(model: nn.Module, path: Path) -> None:
    """Load a safetensors file of a classifier into a detector's backbone, and freeze its norms.

    Raises:
        ConfigError: the model has no such backbone.
        FormatError: the file is missing or not a safetensors file, or it belongs to another network.
    """
    fix = "give a safetensors file of the classifier used as backbone, e.g. of a run of resnet50"
    with _refusing("model.backbone", path, model, fix):
        nmlearn.lab.models.external.load_backbone(model, _tensors(path))


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


@contextmanager
def _refusing(where: str, path: Path, model: nn.Module, fix: str) -> Iterator[None]:
    """Turn any error of loading a file into a FormatError."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:  # the last from a module with versions
        wrong = f"cannot be loaded into {type(model).__name__}: {error}"
        raise FormatError(where=where, given=path, wrong=wrong, fix=fix) from error


def _part_size(config: TrainConfig, ranks: Ranks) -> int:
    parts = ranks.size * config.accumulate
    if config.batch_size % parts:
        raise ConfigError(
            where="batch_size",
            given=config.batch_size,
            wrong=f"cannot be split into {ranks.size} process(es) x {config.accumulate} accumulated part(s)",
            fix=f"use a multiple of {parts}",
        )
    return config.batch_size // parts


def epoch_steps(config: TrainConfig, task: Task) -> int:
    """Optimizer steps of an epoch.

    Raises:
        ConfigError: the training examples are less than one batch.
    """
    if config.batch_size > task.train_size:
        raise ConfigError(
            where="batch_size",
            given=config.batch_size,
            wrong=f"{task.name} has {task.train_size} training examples, less than one batch",
            fix="use a smaller batch or more data",
        )
    return task.train_size // config.batch_size


def _wrapped(model: nn.Module, config: TrainConfig, ranks: Ranks) -> nn.Module:
    forward = model
    if ranks.size > 1:
        device_ids = [ranks.device.index] if ranks.device.type == "cuda" else None
        forward = nn.parallel.DistributedDataParallel(forward, device_ids=device_ids)
    if config.compile:
        forward = torch.compile(forward)  # type: ignore[assignment]
    return forward
