"""An average of a model's weights and buffers."""

from __future__ import annotations

import torch
from torch import nn

from nmlearn.lab.train.average import Average


def test_an_average_follows() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    model.register_buffer("index", torch.arange(100))
    average = Average(model, 0.9)
    start = model[0].weight.detach().clone()
    with torch.no_grad():
        model[0].weight += 1
        model[1].running_mean += 2
        model[1].num_batches_tracked += 5
    average.follow(model, 1000)
    torch.testing.assert_close(average.model[0].weight, start + 0.1)
    torch.testing.assert_close(average.model[1].running_mean, torch.full((2,), 0.2))
    assert average.model[1].num_batches_tracked == 5 and torch.equal(average.model.index, torch.arange(100))
    average.follow(model, 1)  # early on the decay is less: 2 / 11
    torch.testing.assert_close(average.model[0].weight, start + 0.1 + 0.9 * 9 / 11)
    assert not any(p.requires_grad for p in average.model.parameters())
