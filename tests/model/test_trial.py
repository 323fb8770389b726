"""Layers with a forward of their own: a zero of the weight must be one of what is multiplied."""

import copy
import importlib

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nmlearn as nm
from nmlearn.errors import PlanError

DENSE = "its layer changes or standardizes the weight in forward, which makes zeros non-zero"
UNTRIED = "its own forward could not be tried"


class CenteredLinear(nn.Linear):
    def forward(self, x):
        return F.linear(x, self.weight - self.weight.mean(1, keepdim=True), self.bias)


class StandardizedConv(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        std, mean = torch.std_mean(weight, (1, 2, 3), keepdim=True)
        return super()._conv_forward(x, (weight - mean) / std, bias)


class Gated(StandardizedConv):
    """Says nothing at first: its gain starts at zero, as in the last convolution of a branch."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.gain = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return super().forward(x) * self.gain


class Adapted(nn.Linear):
    """Adds what goes another way, nothing at first: the weight's own zeros are multiplied all the same."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.down, self.up = nn.Linear(sizes[0], 2), nn.Linear(2, sizes[1])
        nn.init.zeros_(self.up.weight)

    def forward(self, x):
        return super().forward(x) + self.up(self.down(x))


class PositiveUpsampling(nn.ConvTranspose2d):
    def forward(self, x):
        return F.conv_transpose2d(x, self.weight.exp(), self.bias, self.stride)


class SamePadded(nn.Conv2d):
    def forward(self, x):
        return super().forward(F.pad(x, (1, 1, 1, 1)))


class Ternary(nn.Linear):
    """Quantizes the weight, and the input with a scale and a zero point of its own."""

    def forward(self, x):
        scale, low = self.weight.abs().mean(), x.amin(-1, keepdim=True)
        step = (x.amax(-1, keepdim=True) - low) / 255
        return F.linear(((x - low) / step).round() * step + low, (self.weight / scale).round().clamp(-1, 1) * scale)


class Noisy(nn.Linear):
    """Draws numbers and counts its calls."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.register_buffer("calls", torch.zeros(()))
        self.norm = nn.BatchNorm1d(sizes[0])

    def forward(self, x):
        self.calls += 1
        return super().forward(self.norm(x)) + torch.rand(())


class TwoInputs(nn.Linear):
    def forward(self, x, y):
        return super().forward(x + y)


class Inherited(nn.Linear):
    pass


def row(layer, rules=None):
    """The plan's row of a layer in the middle of a model."""
    model = nn.ModuleDict({"stem": nn.Conv2d(3, 8, 1), "layer": layer, "head": nn.Linear(8, 5)})
    return {row.name: row for row in nm.Sparsifier(model, nm.LBC("2:4"), rules).plan.rows}["layer.weight"]


CHANGING = [
    CenteredLinear(16, 8),
    StandardizedConv(16, 8, 3, dilation=2, groups=2),
    Gated(16, 8, 3),
    PositiveUpsampling(16, 8, 2, 2),
]


@pytest.mark.parametrize("layer", CHANGING, ids=lambda layer: type(layer).__name__)
def test_a_layer_that_multiplies_with_no_zero_stays_dense(layer):
    assert row(layer).reason == DENSE
    for rule in ("2:4", nm.Grouping("2:4", 0 if isinstance(layer, nn.ConvTranspose2d) else 1)):
        with pytest.raises(PlanError, match=DENSE):
            row(layer, {"layer": rule})


@pytest.mark.parametrize(
    "layer", [SamePadded(16, 8, 3), Ternary(16, 8), Noisy(16, 8), Inherited(16, 8), Adapted(16, 8)]
)
def test_a_layer_that_keeps_zeros_becomes_sparse(layer):
    assert row(layer).pattern and row(layer).reason == ""


def test_standardized_convolutions_of_transformers_stay_dense():
    bit = importlib.import_module("transformers.models.bit.modeling_bit")
    assert row(bit.WeightStandardizedConv2d(16, 8, 3)).reason == DENSE


def test_a_weight_is_tried_in_all_its_layers():
    layer = nn.Linear(8, 8)
    changing = CenteredLinear(8, 8)
    changing.weight = layer.weight
    model = nn.ModuleDict({"a": layer, "b": changing, "head": nn.Linear(8, 5)})
    assert nm.Sparsifier(model, nm.LBC("2:4")).plan.rows[0].reason == DENSE


@pytest.mark.parametrize("layer", [TwoInputs(16, 8), CenteredLinear(16, 8, device="meta")])
def test_a_layer_that_cannot_be_tried_becomes_sparse_and_says_so(layer):
    assert row(layer).pattern and row(layer).reason == UNTRIED


def test_trying_a_layer_leaves_no_trace():
    layer, seen = Noisy(16, 8), []
    layer.register_forward_hook(lambda *_: seen.append("hook"))
    layer.norm.register_forward_hook(lambda *_: seen.append("inner hook"))
    layer.forward = lambda x: seen.append("forward of the instance")
    model = nn.ModuleDict({"layer": layer, "head": nn.Linear(8, 5)})
    before, random = copy.deepcopy(layer.state_dict()), torch.get_rng_state()
    assert nm.Sparsifier(model, nm.LBC("2:4")).plan.rows[0].pattern
    assert torch.equal(random, torch.get_rng_state())
    torch.testing.assert_close(layer.state_dict(), before, rtol=0, atol=0)
    assert layer.training and layer.norm.training and not seen and layer.weight.grad is None
