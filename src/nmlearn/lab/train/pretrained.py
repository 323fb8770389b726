"""Taking a pretrained model to a sparse one on a data set: what ``nmlearn sparsify`` does."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import nmlearn
from nmlearn.errors import ConfigError
from nmlearn.lab.data import Task
from nmlearn.lab.models.external import tokens_and_mask
from nmlearn.lab.train import evaluation
from nmlearn.lab.train.config import SparsifyConfig, TrainConfig
from nmlearn.lab.train.ranks import Ranks
from nmlearn.lab.train.setting import build_model, epoch_steps, load_task

ALONE = Ranks(0, 1, torch.device("cpu"))
_TOKENIZER = ("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json")


@dataclass(frozen=True)
class Found:
    """What was done, and measured.

    Attributes:
        done: of ``nm.sparsify``.
        before, after: of the model as it was, and of the sparse one; as :func:`nmlearn.lab.train.evaluation.evaluate`.
        dense: of the dense model after the same fine-tuning; None where it was not asked for.
        files: bytes of the weights as an ordinary file, and packed.
        acceleration: of ``nm.accelerate``; None where it was not asked for.
        examples: that were evaluated.
    """

    done: nmlearn.Sparsified
    before: dict[str, Any]
    after: dict[str, Any]
    dense: dict[str, Any] | None
    files: tuple[int, int]
    acceleration: nmlearn.Acceleration | None
    examples: int


def sparsified(config: SparsifyConfig) -> Found:
    """Build, evaluate, sparsify, save and measure.

    Raises:
        ConfigError, DataError, PlanError: a part refuses its settings.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    training = TrainConfig(data=config.data, model=config.model, batch_size=config.batch_size, seed=config.seed)
    task = load_task(config.data)
    _check(config, training, task)
    model, before = _start(config, training, task)
    Path(config.out).mkdir(parents=True, exist_ok=True)  # now: a path that no folder can have would cost the training
    done = _train(config, task, model, dense=False)
    after = evaluation.evaluate(model, task, training, ALONE)
    dense = None
    if config.dense:
        twin, _ = _start(config, training, task, evaluated=False)
        _train(config, task, twin, dense=True)
        dense = evaluation.evaluate(twin, task, training, ALONE)
    files = _save(config, model)
    example = _inputs(model, next(iter(task.eval_batches(1)))[0])
    acceleration = nmlearn.accelerate(model.eval(), example) if config.accelerate else None
    return Found(done, before, after, dense, files, acceleration, task.eval_size)


def _check(config: SparsifyConfig, training: TrainConfig, task: Task) -> None:
    if task.kind == "detection":
        fix = "train it with nmlearn train"
        raise ConfigError(
            where="data.name", given=config.data.name, wrong="detectors have losses of their own", fix=fix
        )
    epoch_steps(training, task)


def _start(
    config: SparsifyConfig, training: TrainConfig, task: Task, evaluated: bool = True
) -> tuple[nn.Module, dict[str, Any]]:
    torch.manual_seed(config.seed)  # of a new classifier
    model = build_model(config.model, task)
    return model, evaluation.evaluate(model, task, training, ALONE) if evaluated else {}


def _train(config: SparsifyConfig, task: Task, model: nn.Module, dense: bool) -> nmlearn.Sparsified:
    way: dict[str, Any] = {"speedup": config.speedup} if config.speedup else {"pattern": config.pattern}
    if dense:
        way = {"method": nmlearn.Dense(config.pattern)}
    trains: dict[str, Any] = {"loss": _loss, "steps": config.steps, "lr": config.lr} if config.steps else {}
    torch.manual_seed(config.seed)
    return nmlearn.sparsify(
        model,
        batches=_Batches(task, config),
        inputs=lambda batch: _inputs(model, batch[0]),
        rules=dict(config.rules),
        **way,
        **trains,
    )


class _Batches:
    """The training batches, epoch after epoch, each in its own order."""

    def __init__(self, task: Task, config: SparsifyConfig) -> None:
        self.task, self.config, self.epoch = task, config, 0

    def __iter__(self) -> Iterator[Any]:
        epoch, self.epoch = self.epoch, self.epoch + 1
        return self.task.train_batches(self.config.batch_size, epoch=epoch, seed=self.config.seed)


def _inputs(model: nn.Module, x: Tensor) -> Any:
    """What the model takes: of transformers' models for tokens, the mask too, by which padding is left out."""
    return tokens_and_mask(model, x) if x.dim() == 2 and hasattr(model, "config") else x


def _loss(model: nn.Module, batch: Any) -> Tensor:
    return evaluation.training_loss(model, batch[0], batch[1], 0.0)


def _save(config: SparsifyConfig, model: nn.Module) -> tuple[int, int]:
    """Write the folder. Returns the bytes of the weights as they are, and of the packed file."""
    folder = Path(config.out)
    file = folder / "model.safetensors"
    source, _, name = config.model.name.partition(":")
    if source == "transformers":
        from nmlearn.integrations.transformers import save_packed

        save_packed(model, folder)
        for glob in _TOKENIZER:
            for found in Path(name).expanduser().glob(glob):
                shutil.copy(found, folder / found.name)
    else:
        nmlearn.save(model, file)
    return sum(tensor.nbytes for tensor in model.state_dict().values()), file.stat().st_size
