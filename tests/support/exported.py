"""Small finalized models, dense with their zeros, which the tests of exports share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

import nmlearn as nm
from nmlearn.lab import models
from nmlearn.maths.groups import Grouping

Made = tuple[nn.Module, Tensor]
PATTERNS = ("2:4", "1:4", "1:16")


def sparsify(model: nn.Module, pattern: str, rules: dict[str, str | None] | None = None) -> dict[str, Grouping]:
    """Keep N random weights of every group of what a plan takes; returns the groupings by name."""
    taken = nm.Sparsifier(model, nm.LBC(pattern), rules=rules).plan.sparse
    for row in taken:
        view = row.grouping.view(row.parameter.data)
        view *= torch.rand(view.shape).argsort(-1) < row.grouping.pattern.n
    return {row.name: row.grouping for row in taken}


def trained_norms(model: nn.Module) -> None:
    """Batch norms as after training: means, deviations and shifts, and scales of which some are negative."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 2.0)  # type: ignore[arg-type]


def resnet(pattern: str) -> Made:
    model = models.build("resnet8", classes=4, input_shape=(3, 8, 8), width=16)
    trained_norms(model)
    sparsify(model, pattern)
    return model, torch.randn(2, 3, 8, 8)


def mlp(pattern: str) -> Made:
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))
    sparsify(model, pattern)
    return model, torch.randn(2, 16)


def encoder(pattern: str) -> Made:
    options = {"vocabulary": 32, "dim": 16, "depth": 1, "heads": 2}
    model = models.build("text-transformer", classes=4, input_shape=(6,), kind="text", **options)
    sparsify(model, pattern, rules={"blocks.*": pattern})
    return model, torch.randint(0, 32, (2, 6))


MODELS: dict[str, Callable[[str], Made]] = {"resnet": resnet, "mlp": mlp, "encoder": encoder}
