"""FLOPs by layer."""

from __future__ import annotations

import torch
from torch import nn

from nmlearn.lab.train.accounting import dense_flops
from nmlearn.lab.train.average import Average


class Model(nn.Module):
    """A convolution, a grouped one, tokens through an attention, and a layer used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 8, 3, stride=2, padding=1)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.twice = nn.Linear(8, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.grouped(self.conv(x)).flatten(2).mT
        tokens, _ = self.attention(tokens, tokens, tokens)
        return self.head(self.twice(self.twice(tokens)).mean(1))


def test_flops_are_elements_times_positions() -> None:
    model = Model()
    names = [name for name, p in model.named_parameters() if p.ndim > 1]
    flops = dense_flops(model, torch.randn(1, 4, 8, 8), names)
    assert flops == {
        "conv.weight": 2 * 8 * 4 * 9 * 16,
        "grouped.weight": 2 * 8 * 4 * 9 * 16,
        "attention.in_proj_weight": 2 * 24 * 8 * 16,
        "attention.out_proj.weight": 2 * 8 * 8 * 16,  # never called as a module: read by the attention around it
        "twice.weight": 2 * 8 * 8 * 32,
        "head.weight": 2 * 3 * 8,
    }
    assert model.training
    assert all(not module._forward_hooks for module in model.modules())


def test_counting_leaves_no_trace() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.5))
    before, random = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    dense_flops(model, torch.randn(1, 4, 2, 2, generator=torch.Generator().manual_seed(0)), ["0.weight"])
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())


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
