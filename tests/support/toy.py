"""A task and models small enough to train in a test; also a program that trains by a recipe with them.

python tests/support/toy.py RECIPE.yaml          trains with "toy" data and models
python tests/support/toy.py worker RECIPE.yaml   the same, and ends with its standard input: nmlearn.lab.train.worker
python tests/support/toy.py compare RECIPE.yaml  nmlearn compare, whose runs are made by the line above
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import nmlearn.lab.data
import nmlearn.lab.models
from nmlearn.lab.data.task import Batch, Draw, Task
from nmlearn.lab.train import DataConfig, MethodConfig, ModelConfig, OptimConfig, TrainConfig, worker
from processes import as_torchrun

SIZE = 4


class Killed(BaseException):
    """Stands for the end of the process: nothing in the library catches it."""


def kill_after(step: int) -> Callable[[dict[str, Any]], None]:
    """A listener to a run that ends it at a step."""

    def listen(event: dict[str, Any]) -> None:
        if event["event"] == "step" and event["step"] == step:
            raise Killed

    return listen


class Toy(Task):
    """Four classes of noisy 16-channel pictures of 4 x 4; each drawn batch gets noise of its own.

    All batches of epoch ``poison`` are NaN, and in every epoch the one that holds example ``bad``.
    """

    name, kind, classes, source = "toy", "image", 4, "made up"
    input_shape = (16, SIZE, SIZE)
    train_size, eval_size = 100, 30

    def __init__(self, path: object = None, noise: float = 0.0, poison: int = -1, bad: int = -1) -> None:
        random = torch.Generator().manual_seed(1)
        self._means = torch.randn(self.classes, *self.input_shape, generator=random)
        self._x = torch.randn(200, *self.input_shape, generator=random)
        self._noise, self._poison, self._bad = noise, poison, bad

    def _read(self, indices: Tensor) -> Batch:
        labels = indices % self.classes
        return self._means[labels] + self._x[indices], labels

    def read_train(self, draws: Sequence[Draw], *, seed: int, epoch: int) -> Iterator[Batch]:
        for draw in draws:
            x, labels = self._read(draw.indices)
            noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(draw.seed))
            spoilt = epoch == self._poison or self._bad in draw.indices
            yield x * (float("nan") if spoilt else 1.0) + self._noise * noise, labels

    def read_eval(self, parts: Sequence[Tensor]) -> Iterator[Batch]:
        for part in parts:
            yield self._read(part + 150)


def toy_conv(classes: int, input_shape: tuple[int, ...], *, dropout: float = 0.2) -> nn.Module:
    """Convolutions with batch norm, and dropout."""
    return nn.Sequential(
        nn.Conv2d(input_shape[0], 16, 1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(16 * SIZE * SIZE, classes),
    )


def toy_mlp(classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    """Linear layers only: nothing depends on how a batch is split."""
    inputs = input_shape[0] * SIZE * SIZE
    return nn.Sequential(
        nn.Flatten(), nn.Linear(inputs, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, classes)
    )


class Swapped(nn.Module):
    """Its output layer is registered first, and its first convolution last."""

    def __init__(self, classes: int, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.classes, self.hidden = nn.Linear(32, classes), nn.Linear(16 * SIZE * SIZE, 32)
        self.deep, self.stem = nn.Conv2d(16, 16, 1), nn.Conv2d(input_shape[0], 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.deep(self.stem(x).relu()).relu()
        return self.classes(self.hidden(x.flatten(1)).relu())


def register() -> None:
    """Make the toys known by name."""
    nmlearn.lab.data.DATASETS["toy"] = Toy
    nmlearn.lab.models.MODELS["toy-conv"] = toy_conv
    nmlearn.lab.models.MODELS["toy-mlp"] = toy_mlp
    nmlearn.lab.models.MODELS["toy-swapped"] = Swapped


def config(
    out: Path, method: str | MethodConfig = "lbc", model: str | ModelConfig = "toy-conv", **changes: object
) -> TrainConfig:
    """Three epochs of six steps of sixteen examples."""
    base: dict[str, object] = {
        "data": DataConfig("toy"),
        "model": ModelConfig(model) if isinstance(model, str) else model,
        "method": MethodConfig(method, "2:4") if isinstance(method, str) else method,
        "optim": OptimConfig(lr=0.05),
        "epochs": 3,
        "batch_size": 16,
        "threads": 1,
        "log_every": 2,
        "device": "cpu",
        "out": str(out),
    }
    return TrainConfig(**(base | changes))  # type: ignore[arg-type]


def run_command(path: Path) -> list[str]:
    """How a comparison starts a run with these data and models."""
    return [sys.executable, __file__, "worker", str(path)]


def rank(number: int, world: int, port: int, recipe: Path) -> None:
    """One process of a training by a recipe, as torchrun would have started it."""
    as_torchrun(number, world, port)
    register()
    assert worker.main(recipe) == 0


if __name__ == "__main__":
    register()
    if sys.argv[1] == "compare":
        from nmlearn import cli

        module = importlib.import_module("nmlearn.lab.train.compare")
        module.compare = functools.partial(module.compare, command=run_command)
        sys.exit(cli.main(["compare", "--config", sys.argv[2]]))
    sys.exit(worker.main(Path(sys.argv[-1]), ends_with_input=sys.argv[1] == "worker"))
