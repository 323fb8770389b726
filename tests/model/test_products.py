"""Multiply-adds by weight."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nmlearn.model.products import multiply_adds


class Model(nn.Module):
    """A convolution, a grouped one, a transposed one, tokens through an attention, and a layer used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 8, 3, stride=2, padding=1)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.up = nn.ConvTranspose2d(8, 8, 2, stride=2)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.twice = nn.Linear(8, 8)
        self.never = nn.Linear(8, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.grouped(self.conv(x))
        tokens, _ = self.attention(*[x.flatten(2).mT] * 3)
        return self.head(self.twice(self.twice(tokens)).mean(1)) + self.up(x).mean()


def weights(model: nn.Module) -> list[str]:
    return [name for name, p in model.named_parameters() if p.ndim > 1]


def test_they_are_elements_times_positions() -> None:
    model, x = Model(), torch.randn(1, 4, 8, 8)
    assert multiply_adds(model, lambda: model(x), weights(model)) == {
        "conv.weight": 8 * 4 * 9 * 16,
        "grouped.weight": 8 * 4 * 9 * 16,
        "up.weight": 8 * 8 * 4 * 16,  # each of 16 pixels, though it writes 64
        "attention.in_proj_weight": 24 * 8 * 16,
        "attention.out_proj.weight": 8 * 8 * 16,  # never called as a module: read by the attention around it
        "twice.weight": 8 * 8 * 32,
        "never.weight": 8 * 8 * 1,  # of the model's one output: what is around it counts, as for attention
        "head.weight": 3 * 8,
    }
    assert model.training
    assert all(not module._forward_hooks for module in model.modules())


def test_an_image_without_a_batch_and_a_recurrent_layer() -> None:
    conv, x = nn.Conv1d(4, 2, 3), torch.randn(4, 10)
    assert multiply_adds(conv, lambda: conv(x), ["weight"]) == {"weight": 2 * 4 * 3 * 8}
    rnn, tokens = nn.LSTM(4, 6, batch_first=True), torch.randn(2, 5, 4)
    found = multiply_adds(rnn, lambda: rnn(tokens), ["weight_ih_l0", "weight_hh_l0"])
    assert found == {"weight_ih_l0": 24 * 4 * 10, "weight_hh_l0": 24 * 6 * 10}


def test_a_tied_weight_counts_where_it_multiplies() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.one, self.head = nn.Embedding(16, 8), nn.Linear(8, 8), nn.Linear(8, 16)
            self.two = nn.Linear(8, 8)
            self.head.weight, self.two.weight = self.embed.weight, self.one.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.two(self.one(self.embed(x)))[:, -1])

    model, x = Tied(), torch.arange(12).view(2, 6)
    found = multiply_adds(model, lambda: model(x), weights(model))
    assert found == {"embed.weight": 16 * 8 * 2, "one.weight": 8 * 8 * 2 * 12}


def test_counting_leaves_no_trace() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.5))
    before, random = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    x = torch.randn(1, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    multiply_adds(model, lambda: model(x), ["0.weight"])
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())
