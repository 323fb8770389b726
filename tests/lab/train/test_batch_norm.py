"""Batch norm's statistics after weights were removed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import nmlearn as nm
import small_data
from nmlearn.lab.train.batch_norm import reestimate
from nmlearn.lab.train.config import TrainConfig
from nmlearn.lab.train.ranks import Ranks

ALONE = Ranks(0, 1, torch.device("cpu"))
CONFIG = TrainConfig(batch_size=8, epochs=1)


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.BatchNorm2d(4), nn.Flatten())


def masked() -> nn.Sequential:
    """A network whose statistics are those of its dense weights."""
    torch.manual_seed(0)
    model = network()
    with torch.no_grad():
        for images, _ in small_data.numbered(64).train_batches(8, epoch=0, seed=0):
            model(images)
    sparsifier = nm.Sparsifier(model, nm.OneShot("1:4"), rules={"2": "1:4"})
    sparsifier.attach(torch.optim.SGD(model.parameters()), 1).finalize()
    return model


@pytest.mark.parametrize(("examples", "batches"), [(1, 1), (16, 2), (17, 3), (1000, 8)])
def test_statistics_are_the_mean_over_batches(examples: int, batches: int) -> None:
    model, task = masked().eval(), small_data.numbered(64)
    weights = [parameter.clone() for parameter in model.parameters()]
    reestimate(model, task, CONFIG, ALONE, examples)
    seen = [model[:3](images) for images, _ in task.train_batches(8, epoch=1, seed=0)][:batches]
    means = torch.stack([x.mean((0, 2, 3)) for x in seen]).mean(0)
    variances = torch.stack([x.var((0, 2, 3)) for x in seen]).mean(0)
    torch.testing.assert_close(model[3].running_mean, means)
    torch.testing.assert_close(model[3].running_var, variances)
    assert not model.training and model[3].momentum == 0.1
    assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))


def test_masked_activations_are_normal_again() -> None:
    model, task = masked().eval(), small_data.numbered(64)
    images = torch.cat([images for images, _ in task.train_batches(8, epoch=1, seed=0)])
    before = model(images).var()
    reestimate(model, task, CONFIG, ALONE, 64)
    after = model(images).var()
    assert abs(after - 1) < 0.2 < abs(before - 1)


def test_a_model_without_batch_norm_is_left_alone() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2), nn.Dropout(0.5))
    reestimate(model, small_data.numbered(16), CONFIG, ALONE, 16)
    assert model.training
