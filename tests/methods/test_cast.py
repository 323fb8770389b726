"""CAST: its AdamS by formulas of NumPy's, next to dense layers and one cut at the end, in float64."""

import numpy as np
import pytest
import torch
from torch import nn

import nmlearn as nm
from nets import batches, convnet, sgd, train
from nmlearn.errors import ConfigError, ScheduleError
from references import LAYERS, Behind, OwnSteps, beside, check_shadow, largest

LR, BETA1, BETA2, EPS, DECAY, STEPS = 1e-3, 0.9, 0.99, 1e-6, 0.05, 16


def adam(model):
    return torch.optim.Adam(model.parameters(), LR, betas=(BETA1, BETA2), eps=EPS)


class AdamS:
    """The paper's step of one weight: a pull in the first moment, none in the second."""

    def __init__(self, weight, n, m, end):
        self.first, self.second, self.steps = np.zeros_like(weight), np.zeros_like(weight), 0
        self.n, self.m, self.end, self.kept = n, m, end, largest(weight, n, m)

    def __call__(self, weight, g):
        pull = DECAY * min(1.0, self.steps / self.end) * np.sign(weight) * (1 - self.kept)
        self.steps += 1
        self.first = BETA1 * self.first + (1 - BETA1) * (g + pull)
        self.second = BETA2 * self.second + (1 - BETA2) * g**2
        m, v = self.first / (1 - BETA1**self.steps), self.second / (1 - BETA2**self.steps)
        after = weight - LR * m / (np.sqrt(v) + EPS)
        if self.steps % (self.end // 4) == 0 and self.steps <= self.end:  # the next of four masks, or the last
            self.kept = largest(after, self.n, self.m)
        return after


@pytest.mark.parametrize("end", [16, 8])
@pytest.mark.parametrize("pattern", ["2:4", "1:4", "3:8"])
def test_is_the_papers_method(pattern, end):
    """The same losses and weights to 1e-10, over 16 steps; also those behind the cut, where the pull goes on."""
    p, known = nm.Pattern(pattern), {}

    def build(layer, name, sparsifier):
        known[name] = AdamS(layer.weight.detach().numpy(), p.n, p.m, end)

        def used(dense):
            return np.where(known[name].kept | (known[name].steps < end), dense, 0.0), np.zeros_like(dense)

        return Behind(layer, used)

    def optimizer(model):
        return OwnSteps(model, adam, known) if isinstance(model.conv, Behind) else adam(model)

    method = nm.CAST(pattern, DECAY, end / STEPS, refreshes=4, beta1=BETA1, beta2=BETA2, eps=EPS)
    for _, sparsifier, ours, theirs in beside(method, build, STEPS, optimizer):
        check_shadow(sparsifier, ours, theirs)
    sparsifier.finalize()
    assert set(known) == set(LAYERS)


def test_without_decay_it_is_torchs_adamw_until_the_cut():
    def adamw(model):
        return torch.optim.AdamW(model.parameters(), LR, betas=(BETA1, BETA2), eps=EPS, weight_decay=0.1)

    models, data = [convnet().double(), convnet().double()], batches(STEPS, dtype=torch.float64)
    for model, learns in zip(models, (True, False), strict=True):
        optimizer = adamw(model)
        method = nm.CAST("2:4", 0.0, beta1=BETA1, beta2=BETA2, eps=EPS, weight_decay=0.1)
        if learns:
            nm.Sparsifier(model, method).attach(optimizer, STEPS + 1)
        train(model, optimizer, data)
    for ours, theirs in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_what_is_cut_off_has_shrunk():
    """The larger the decay the less is left to cut; there are no gradients but of the decay and of noise."""
    left = []
    for decay in (0.0, 0.001, 0.003):
        torch.manual_seed(0)
        layer = nn.Linear(16, 16, bias=False)
        optimizer = sgd(layer, lr=0.01)
        sparsifier = nm.Sparsifier(layer, nm.CAST("2:4", decay, refreshes=10), {"*": "2:4"}).attach(optimizer, 201)
        for _ in range(200):
            optimizer.zero_grad()
            layer.weight.grad = 0.01 * torch.randn(16, 16)
            optimizer.step()
        dense = sparsifier._weights[0].state["dense"]
        kept = torch.from_numpy(largest(dense.numpy(), 2, 4))
        left.append(float(dense[~kept].abs().sum() / dense.abs().sum()))
    assert left[0] > 1.2 * left[1] > 1.2 * 1.2 * left[2], left


def test_settings_that_make_no_sense_are_refused():
    for end in (0.0, 1.5, -0.1):
        with pytest.raises(ScheduleError, match=r"cast.*end"):
            nm.CAST("2:4", end=end)
    for options in ({"decay": -1.0}, {"refreshes": 0}, {"refreshes": 10**7}, {"beta1": 1.0}, {"eps": 0.0}):
        with pytest.raises(ConfigError, match=next(iter(options))):
            nm.CAST("2:4", **options)
