"""Re-estimates batch norm statistics after pruning: the old ones belong to other activations."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from nmlearn.lab.data import Task
from nmlearn.lab.train.config import TrainConfig
from nmlearn.lab.train.evaluation import autocast, to_device
from nmlearn.lab.train.ranks import Ranks


def reestimate(model: nn.Module, task: Task, config: TrainConfig, ranks: Ranks, examples: int) -> None:
    """Replace the running statistics of all batch norms by the mean over training batches; weights are unchanged.

    A model without batch norm is left alone. The batches are those of the epoch after the last one.

    Args:
        model: left in the mode it was in.
        task, config, ranks: as in training; with several processes each takes its share.
        examples: number of training examples, rounded up to whole batches of ``config.batch_size``; one epoch at most.
    """
    batches = task.train_batches(
        config.batch_size // ranks.size,
        epoch=config.epochs,
        seed=config.seed,
        rank=ranks.rank,
        world=ranks.size,
    )

    def inputs() -> Iterator[Tensor]:
        for images, _ in islice(batches, -(-examples // config.batch_size)):
            yield to_device(images, ranks.device, config)

    with autocast(ranks.device, config):
        update_bn(inputs(), model)
    for module in model.modules():
        for name in ("running_mean", "running_var"):
            buffer = getattr(module, name, None)
            if isinstance(buffer, Tensor):
                buffer.copy_(ranks.sum(buffer.clone()) / ranks.size)  # each process saw its share
