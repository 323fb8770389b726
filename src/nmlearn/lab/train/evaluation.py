"""Loss and evaluation."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from nmlearn.lab.data import Task
from nmlearn.lab.train import detection
from nmlearn.lab.train.config import TrainConfig
from nmlearn.lab.train.ranks import Ranks


def loss_of(logits: torch.Tensor, targets: torch.Tensor, label_smoothing: float = 0.0) -> torch.Tensor:
    """Mean cross-entropy, in nats, float32.

    Args:
        logits: [b, classes], or [b, T, classes] for language.
        targets: int64 [b] or [b, T], or float [b, classes] when labels are mixed.
        label_smoothing: in [0, 1).
    """
    if logits.ndim == 3:
        logits, targets = logits.flatten(0, 1), targets.flatten()
    return functional.cross_entropy(logits.float(), targets, label_smoothing=label_smoothing)


def training_loss(forward: nn.Module, inputs: Any, targets: Any, label_smoothing: float) -> torch.Tensor:
    """The loss of a part of a batch: a detector computes its own, all other models use the cross-entropy."""
    if isinstance(inputs, list):
        return detection.loss_of(forward, inputs, targets)
    logits = forward(inputs)
    return loss_of(logits, targets.to(logits.device, non_blocking=True), label_smoothing)


def to_device(batch: Any, device: torch.device, config: TrainConfig) -> Any:
    """Inputs on the model's device and in its memory format; lists of images are returned unchanged."""
    if isinstance(batch, list):
        return batch
    if batch.ndim == 4:
        layout = torch.channels_last if config.channels_last else torch.contiguous_format
        return batch.to(device, non_blocking=True, memory_format=layout)
    return batch.to(device, non_blocking=True)


def example(task: Task, device: torch.device, config: TrainConfig) -> Any:
    """The inputs of one evaluation example: the same in every process and run, and nothing of what training draws."""
    inputs, _ = next(iter(task.eval_batches(1)))
    return to_device(inputs[:1], device, config)


def inputs(task: Task, count: int, device: torch.device, config: TrainConfig) -> Iterator[Any]:
    """Batches of the inputs of so many training examples, or of all; the same in every process."""
    size = min(config.batch_size, count, task.train_size)
    for x, _ in itertools.islice(task.train_batches(size, epoch=0, seed=config.seed), max(1, count // size)):
        yield to_device(x, device, config)


def autocast(device: torch.device, config: TrainConfig) -> AbstractContextManager[object]:
    """bf16 autocast; does nothing for fp32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=config.precision == "bf16")


@torch.no_grad()
def evaluate(model: nn.Module, task: Task, config: TrainConfig, ranks: Ranks) -> dict[str, float | None]:
    """Mean loss (nats), accuracy (0..1; None for language) and bits per byte (for language, else None), over all ranks.

    For detectors the loss is their own, and box_ap and mask_ap are added; see :mod:`nmlearn.lab.train.detection`. The
    model is left in the mode it was in.
    """
    was_training = model.training
    model.eval()
    ranks.share_buffers(model)
    if task.kind == "detection":
        with autocast(ranks.device, config):
            values = detection.evaluate(model, task, config.eval_batch_size, ranks)
        model.train(was_training)
        return {"accuracy": None, "bits_per_byte": None, **values}
    total = torch.zeros(3, dtype=torch.float64, device=ranks.device)
    for inputs, targets in task.eval_batches(config.eval_batch_size, rank=ranks.rank, world=ranks.size):
        inputs, targets = to_device(inputs, ranks.device, config), targets.to(ranks.device)
        with autocast(ranks.device, config):
            logits = model(inputs)
        correct = (logits.argmax(-1) == targets).sum()
        total += torch.stack([loss_of(logits, targets) * targets.numel(), correct, total.new_tensor(targets.numel())])
    model.train(was_training)
    loss, correct, count = ranks.sum(total).tolist()
    language = task.kind == "language"
    bits = loss / count / math.log(2) / task.bytes_per_token if language and task.bytes_per_token else None
    return {"loss": loss / count, "accuracy": None if language else correct / count, "bits_per_byte": bits}
