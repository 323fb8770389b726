"""The interface of a data source, and the deterministic order in which all sources are read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from nmlearn.errors import ConfigError

# Inputs and targets: two tensors; for "detection" a list of tensors and a list of dicts of tensors.
Batch = tuple[Any, Any]


class Draw(NamedTuple):
    """One training batch before it is read: its examples, and the seed of its augmentation."""

    indices: Tensor  # int64 [b]
    seed: int


def mixed_seed(*numbers: int) -> int:
    """One 63-bit seed from several non-negative numbers; similar inputs give unrelated seeds."""
    state = np.random.SeedSequence(numbers).generate_state(1, np.uint64)
    return int(state[0]) & (2**63 - 1)


def generator(seed: int) -> torch.Generator:
    """A separate CPU generator: the global one belongs to the training loop."""
    return torch.Generator().manual_seed(seed)


class Task(ABC):
    """Training and evaluation examples of one source.

    Attributes:
        name: the name in `DATASETS`.
        kind: "image", "text" (classification), "language" (next token) or "detection" (boxes).
        classes: number of classes; the vocabulary size for "language"; with the background for "detection".
        input_shape: of one example, [C, H, W] or [T].
        train_size, eval_size: numbers of examples.
        source: where the data came from, for reports.
        vocabulary: number of token ids for "text" and "language", else None.
        bytes_per_token: mean bytes per token for "language" (bits per byte = loss / ln 2 / bytes_per_token), else None.
        repeats: how often an epoch shows each of its examples, with a new augmentation each time; see `train_batches`.
        device: where batches are finished and returned, for sources that support it; others leave it to the caller. It
            may be assigned.
    """

    name: str
    kind: str
    classes: int
    input_shape: tuple[int, ...]
    train_size: int
    eval_size: int
    source: str
    vocabulary: int | None = None
    bytes_per_token: float | None = None
    repeats: int = 1
    device: torch.device = torch.device("cpu")

    def train_batches(
        self, batch_size: int, *, epoch: int, seed: int, rank: int = 0, world: int = 1, skip: int = 0
    ) -> Iterator[Batch]:
        """One epoch of shuffled, augmented batches for one rank: train_size // (batch_size * world) of them.

        The result depends only on (seed, epoch, rank, world). Batch k of all ranks together is the k-th slice of one
        permutation, so ranks never share an example. `skip` starts at that batch; the batches are the same as
        without it.

        With `repeats` r the epoch shows one r-th of the examples r times, adjacent and on different ranks if possible
        (repeated augmentation; Hoffer et al. 2020). Copy c of example i is drawn as number i + c * train_size.

        Yields:
            inputs (float32 [b, C, H, W], or int64 tokens [b, T]) and targets (int64 [b]; float32 [b, classes] under
            mixup or cutmix; int64 [b, T] for "language"). For "detection" see `nmlearn.lab.data.coco`.

        Raises:
            ConfigError: the training set is smaller than one batch, or the rank is outside the world.
        """
        _check_split(batch_size, rank, world)
        steps = self.train_size // (batch_size * world)
        if steps == 0:
            raise ConfigError(
                where="batch_size",
                given=f"{batch_size} on {world} process(es)",
                wrong=f"{self.name} has only {self.train_size} training examples, less than one batch",
                fix="use a smaller batch or more training examples",
            )
        order = self._order(seed, epoch)[: steps * batch_size * world]
        # Copies are adjacent: dealt out in turn, they go to different ranks.
        dealt = order.view(steps, batch_size, world).transpose(1, 2)
        slices = (order.view(steps, world, batch_size) if self.repeats == 1 else dealt)[:, rank]
        draws = [Draw(slices[k], mixed_seed(seed, epoch, k, rank)) for k in range(skip, steps)]
        return self.read_train(draws, seed=seed, epoch=epoch)

    def _order(self, seed: int, epoch: int) -> Tensor:
        """The example numbers of an epoch, int64 [train_size]."""
        order = torch.randperm(self.train_size, generator=generator(mixed_seed(seed, epoch)))
        copies = torch.arange(self.repeats) * self.train_size
        return (order[:, None] + copies).flatten()[: self.train_size]

    def eval_batches(self, batch_size: int, *, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        """Every evaluation example exactly once over all ranks, in a fixed order; the last batch may be smaller."""
        _check_split(batch_size, rank, world)
        mine = torch.arange(self.eval_size)[rank::world]
        return self.read_eval([part for part in mine.split(batch_size) if len(part)])

    @abstractmethod
    def read_train(self, draws: Sequence[Draw], *, seed: int, epoch: int) -> Iterator[Batch]:
        """The drawn training batches, read and augmented."""

    @abstractmethod
    def read_eval(self, parts: Sequence[Tensor]) -> Iterator[Batch]:
        """The evaluation batches of these example numbers (int64 [b] each)."""


def _check_split(batch_size: int, rank: int, world: int) -> None:
    if batch_size < 1:
        raise ConfigError(where="batch_size", given=batch_size, wrong="not positive", fix="use at least 1")
    if not 0 <= rank < world:
        raise ConfigError(
            where="rank", given=f"{rank} of {world}", wrong="no such rank", fix="use 0 <= rank < world size"
        )


def first(size: int, limit: int | None) -> int:
    """How many examples `limit` leaves of `size`."""
    return size if limit is None else min(size, limit)
