"""STEP: its two phases by formulas of NumPy's, next to torch's own Adam, in float64."""

import numpy as np
import pytest
import torch
from torch import nn

import nmlearn as nm
from nets import sgd
from nmlearn.errors import ConfigError, ScheduleError
from references import Behind, OwnSteps, beside, check_shadow, largest

LR, BETA1, BETA2, EPS = 1e-3, 0.9, 0.99, 1e-6


def adam(model):
    return torch.optim.Adam(model.parameters(), LR, betas=(BETA1, BETA2), eps=EPS)


class Phases:
    """The step of one weight: Adam, whose second moment rests from the switch on."""

    def __init__(self, weight, last_dense_step):
        self.first, self.second = np.zeros_like(weight), np.zeros_like(weight)
        self.steps, self.last_dense_step = 0, last_dense_step

    def __call__(self, weight, g):
        self.steps += 1
        seen = min(self.steps, self.last_dense_step)
        self.first = BETA1 * self.first + (1 - BETA1) * g
        if self.steps <= self.last_dense_step:
            self.second = BETA2 * self.second + (1 - BETA2) * g * g
        m, v = self.first / (1 - BETA1**self.steps), self.second / (1 - BETA2**seen)
        return weight - LR * m / (np.sqrt(v) + EPS)


def method(pattern="2:4", **options):
    return nm.STEP(pattern, **{"beta1": BETA1, "beta2": BETA2, "eps": EPS} | options)


@pytest.mark.parametrize("switch, last_dense_step", [(0.25, 4), (0.4, 7)])
@pytest.mark.parametrize("pattern", ["2:4", "1:4", "3:8"])
def test_is_the_papers_method(pattern, switch, last_dense_step):
    """The same losses and weights to 1e-10, over both phases: 16 steps."""
    p, known = nm.Pattern(pattern), {}

    def build(layer, name, sparsifier):
        known[name] = Phases(layer.weight.detach().numpy(), last_dense_step)

        def used(dense):
            masked = known[name].steps >= last_dense_step
            return np.where(masked & ~largest(dense, p.n, p.m), 0.0, dense), np.zeros_like(dense)

        return Behind(layer, used)

    def optimizer(model):
        return OwnSteps(model, adam, known) if isinstance(model.conv, Behind) else adam(model)

    for _, sparsifier, ours, theirs in beside(method(pattern, switch=switch), build, optimizer=optimizer):
        check_shadow(sparsifier, ours, theirs)
    sparsifier.finalize()


def one_layer(chosen, optimizer, steps=8, weight=None):
    torch.manual_seed(0)
    layer = nn.Linear(16, 8, dtype=torch.float64)
    if weight is not None:
        layer.to(weight.dtype).weight.data.copy_(weight)
    made = optimizer(layer)
    return layer, made, nm.Sparsifier(layer, chosen, {"*": "2:4"}).attach(made, steps)


def stepped(layer, optimizer, steps):
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        optimizer.zero_grad()
        x = torch.randn(4, 16, generator=generator, dtype=torch.float64).to(layer.weight.dtype)
        layer(x).square().sum().backward()
        optimizer.step()


def test_the_first_phase_is_torchs_adamw_but_for_rounding():
    def adamw(layer):
        return torch.optim.AdamW(layer.parameters(), 0.01, betas=(BETA1, BETA2), eps=EPS, weight_decay=0.1)

    layer, optimizer, _ = one_layer(method(switch=1.0, weight_decay=0.1), adamw, steps=100)
    stepped(layer, optimizer, 50)
    torch.manual_seed(0)
    plain = nn.Linear(16, 8, dtype=torch.float64)
    stepped(plain, adamw(plain), 50)
    torch.testing.assert_close(layer.weight, plain.weight, rtol=0, atol=1e-13)


def test_the_second_moment_rests_and_the_first_goes_on():
    layer, optimizer, sparsifier = one_layer(method(switch=0.5), adam)
    state = sparsifier._weights[0].state
    stepped(layer, optimizer, 4)
    first, second = state["exp_avg"].clone(), state["exp_avg_sq"].clone()
    assert bool((layer.weight != 0).sum(-1).eq(8).all())  # from the switch on
    stepped(layer, optimizer, 3)
    assert torch.equal(state["exp_avg_sq"], second) and not torch.equal(state["exp_avg"], first)
    assert (int(state["firsts"]), int(state["seconds"])) == (7, 4)


def test_another_optimizer_leaves_the_sparse_weights_alone():
    """They move by their learning rate alone: neither its kind nor its weight decay is theirs."""
    results = []
    for make in (sgd, adam):
        layer, optimizer, _ = one_layer(method(), make)
        for group in optimizer.param_groups:
            group["lr"] = LR
        with torch.no_grad():
            layer.bias.zero_()
        stepped(layer, optimizer, 1)
        results.append(layer.weight.detach().clone())
    assert torch.equal(*results)


def test_a_weight_whose_gradients_come_late_is_preconditioned_all_the_same():
    layer, optimizer, sparsifier = one_layer(method(switch=0.25), adam)
    before = layer.weight.detach().clone()
    for _ in range(4):
        sparsifier.skip_step()
    assert not layer.weight.eq(before).all()  # masked
    stepped(layer, optimizer, 4)
    state = sparsifier._weights[0].state
    assert (int(state["firsts"]), int(state["seconds"])) == (4, 1)
    assert bool(layer.weight.isfinite().all()) and not state["dense"].eq(before).any()


def test_settings_that_make_no_sense_are_refused():
    for switch in (0.0, 1.5, -0.1):
        with pytest.raises(ScheduleError, match=r"stepadam.*switch"):
            nm.STEP("2:4", switch=switch)
    for options in ({"beta1": 1.0}, {"beta2": -0.1}, {"eps": 0.0}, {"weight_decay": -1.0}):
        with pytest.raises(ConfigError, match=next(iter(options))):
            nm.STEP("2:4", **options)
