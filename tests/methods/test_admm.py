"""ADMM: as a penalty in the loss of a second network, which autograd differentiates, in float64."""

import numpy as np
import pytest
import torch
from torch import nn

import nmlearn as nm
from nets import batches, convnet, sgd, train
from nmlearn.errors import ConfigError, ScheduleError
from references import LAYERS, attached, beside, call, largest

RHO, STEPS = 0.3, 16


class Penalized(nn.Module):
    """A layer whose weight has the penalty rho / 2 |W - Z + U|^2 as a term of the loss, or a fixed mask."""

    def __init__(self, layer, n, m):
        super().__init__()
        self.layer, self.n, self.m = layer, n, m
        self.mask = None
        start = layer.weight.detach().numpy()
        self.z, self.u = np.where(largest(start, n, m), start, 0.0), np.zeros_like(start)

    def penalty(self):
        if self.mask is not None:
            return 0.0
        return RHO / 2 * (self.layer.weight - torch.from_numpy(self.z - self.u)).square().sum()

    def project(self):
        weight = self.layer.weight.detach().numpy()
        moved = weight + self.u
        self.z = np.where(largest(moved, self.n, self.m), moved, 0.0)
        self.u = self.u + weight - self.z

    def fix(self):
        self.mask = torch.from_numpy(largest(self.layer.weight.detach().numpy(), self.n, self.m))
        self.clear()

    def clear(self):
        if self.mask is not None:
            self.layer.weight.data.masked_fill_(~self.mask, 0.0)

    def forward(self, x):
        weight = self.layer.weight if self.mask is None else self.layer.weight * self.mask
        return call(self.layer, x, weight)


class WithPenalty(torch.optim.SGD):
    """SGD on the loss that is differentiated already and the penalties, which it adds; removed weights rest at 0."""

    def __init__(self, model, lr):
        super().__init__(model.parameters(), lr, momentum=0.9, weight_decay=1e-3)
        self.layers = [getattr(model, name) for name in LAYERS]

    def step(self):
        for layer in self.layers:
            if layer.mask is None:
                layer.penalty().backward()
        super().step()
        for layer in self.layers:
            layer.clear()


@pytest.mark.parametrize("end", [16, 8])
@pytest.mark.parametrize("pattern", ["2:4", "1:4", "3:8"])
def test_is_the_papers_method(pattern, end):
    """The same losses and weights to 1e-10: four projections, the last of which fixes the mask."""
    p, layers = nm.Pattern(pattern), []

    def build(layer, name, sparsifier):
        layers.append(Penalized(layer, p.n, p.m))
        return layers[-1]

    def optimizer(model):
        return WithPenalty(model, 0.1) if isinstance(model.conv, Penalized) else sgd(model, 0.1)

    moved = []
    method = nm.ADMM(pattern, RHO, end / STEPS, projections=4)
    for step, sparsifier, _, theirs in beside(method, build, STEPS, optimizer):
        for layer in layers if step and step % (end // 4) == 0 and step <= end else ():
            before = layer.z != 0
            layer.project() if step < end else layer.fix()
            moved.append(int((before != (layer.z != 0)).sum()))
        for w, name in zip(sparsifier._weights, LAYERS, strict=True):
            reference = getattr(theirs, name)
            torch.testing.assert_close(w.parameter, reference.layer.weight, rtol=0, atol=1e-10)
            if step < end:
                z_minus_u = torch.from_numpy(reference.z - reference.u)
                torch.testing.assert_close(w.state["target"], z_minus_u, rtol=0, atol=1e-10)
    sparsifier.finalize()
    assert sum(moved) > 0 and len(moved) == 12


def test_the_mask_alone_is_left_at_the_end():
    model = convnet()
    optimizer, sparsifier = attached(model, nm.ADMM("2:4", end=0.5))
    sizes = [sparsifier.state_bytes()]
    train(model, optimizer, batches(STEPS), after=lambda _: sizes.append(sparsifier.state_bytes()))
    sparse = sum(row.parameter.numel() for row in sparsifier.plan.sparse)
    assert sizes == [9 * sparse] * 8 + [sparse] * 9  # two float32 tensors and a byte, then a byte a weight
    sparsifier.finalize()


def test_the_penalty_brings_the_weights_near_the_pattern():
    """What the last projection prunes is the less, the larger the penalty is."""
    left = []
    for rho in (0.0, 0.1, 0.3):
        model = convnet()
        optimizer = sgd(model, 0.1)
        sparsifier = nm.Sparsifier(model, nm.ADMM("2:4", rho, 1.0, 10)).attach(optimizer, 101)
        train(model, optimizer, batches(100))
        weight = model.hidden.weight.detach()
        pruned = weight[torch.from_numpy(~largest(weight.numpy(), 2, 4))]
        left.append(float(pruned.abs().sum() / weight.abs().sum()))
        sparsifier.detach()
    assert left[0] > 1.2 * left[1] > 1.2 * 1.2 * left[2], left


def test_settings_that_make_no_sense_are_refused():
    for end in (0.0, 1.5):
        with pytest.raises(ScheduleError, match=r"admm.*end"):
            nm.ADMM("2:4", end=end)
    for options in ({"rho": -1.0}, {"projections": 0}, {"projections": 10**7}):
        with pytest.raises(ConfigError, match=next(iter(options))):
            nm.ADMM("2:4", **options)
