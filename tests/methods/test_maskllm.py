"""MaskLLM: as a module with logits, softmax and torch's AdamW in float64; gradients against differences."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nmlearn as nm
from nets import batches, convnet, learn, sgd, train
from nmlearn.errors import ConfigError, ScheduleError
from nmlearn.maths import noise
from nmlearn.methods.method import At
from references import LAYERS, beside, call, largest

LR, LAMBDA, SIGMA, STRENGTH = 0.02, 1e-2, 0.01, 3.0
KAPPA, TAU = (1e2, 5e2), (4.0, 0.05)


class Learnable(nn.Module):
    """A layer whose frozen weight is masked by a mixture of combinations, group by group."""

    def __init__(self, layer, name, n, m):
        super().__init__()
        self.layer, self.name, self.n, self.m = layer.requires_grad_(False), f"{name}.weight", n, m
        if layer.bias is not None:
            layer.bias.requires_grad_(True)
        kept = list(itertools.combinations(range(m), n))
        self.table = torch.tensor([[float(j in combo) for j in range(m)] for combo in kept], dtype=torch.float64)
        weight = layer.weight
        self.shape = (weight.shape[0], weight.shape[1] // m, *weight.shape[2:], len(kept))
        logits = SIGMA * noise.normal(self.shape, 0, 0, self.name).double()
        prior = torch.tensor(largest(weight.numpy(), n, m))
        for place in np.ndindex(self.shape[:-1]):
            held = self.group(prior, place).double() @ self.table.t()
            logits[place] += SIGMA * STRENGTH * (held - n / 2)
        self.logits = nn.Parameter(logits)
        self.moment = (0, 0.0)  # step, progress

    def group(self, weight, place):
        out, block, *position = place
        return weight[(out, slice(block * self.m, (block + 1) * self.m), *position)]

    def mask(self):
        step, along = self.moment
        if along >= 1:
            y = F.one_hot(self.logits.argmax(-1), len(self.table)).double()
        else:
            kappa, tau = (a + (b - a) * along for a, b in (KAPPA, TAU))
            drawn = noise.gumbel(self.shape, 0, step, self.name).double()
            y = torch.softmax((kappa * self.logits + drawn) / tau, -1)
        mixed = y @ self.table  # [out, in/m, ..., m]
        return torch.stack([mixed[..., j] for j in range(self.m)], 2).flatten(1, 2)

    def in_use(self):
        return self.layer.weight * self.mask()

    def forward(self, x):
        return call(self.layer, x, self.in_use())


class Both:
    """SGD on what the network has, AdamW on logits, and the regularizer's gradient before either."""

    def __init__(self, model):
        self.layers = [module for module in model.modules() if isinstance(module, Learnable)]
        logits = [layer.logits for layer in self.layers]
        own = {id(p) for p in logits}
        rest = [p for p in model.parameters() if id(p) not in own and p.requires_grad]
        self.both = [torch.optim.SGD(rest, 0.05, momentum=0.9, weight_decay=1e-3)]
        self.both.append(torch.optim.AdamW(logits, LR, weight_decay=0.1))

    def zero_grad(self):
        for optimizer in self.both:
            optimizer.zero_grad()

    def step(self):
        if self.layers[0].moment[1] < 1:
            (-LAMBDA * sum(layer.in_use().square().sum() for layer in self.layers)).backward()
            self.both[1].step()
        self.both[0].step()


def either(model):
    return Both(model) if any(isinstance(module, Learnable) for module in model.modules()) else sgd(model)


def method(pattern, **options):
    return nm.MaskLLM(pattern, lr=LR, regularization=LAMBDA, **options)


def weights(sparsifier):
    return {w.name.removesuffix(".weight"): w for w in sparsifier._weights}


@pytest.mark.parametrize("pattern, end", [("2:4", 1.0), ("1:4", 0.75)])
def test_is_the_papers_method(pattern, end):
    p, steps = nm.Pattern(pattern), 16
    made = beside(method(pattern, end=end), lambda layer, name, _: Learnable(layer, name, p.n, p.m), steps, either)
    for step, sparsifier, ours, theirs in made:
        for name in LAYERS:
            layer = getattr(theirs, name)
            layer.moment = (step, step / steps / end)
            torch.testing.assert_close(
                weights(sparsifier)[name].state["logits"], layer.logits.detach(), rtol=0, atol=1e-10
            )
            torch.testing.assert_close(
                getattr(ours, name).weight, layer.in_use(), rtol=0, atol=1e-10, check_layout=False
            )
    sparsifier.finalize()


def test_weights_never_move():
    """The dense ones behind: not by weight decay, momentum or the regularizer."""
    model = convnet()
    before = {name: getattr(model, name).weight.detach().clone() for name in LAYERS}
    sparsifier = learn(method("2:4"), model=model)
    for name, w in weights(sparsifier).items():
        assert torch.equal(w.state["dense"], before[name])
        kept = sparsifier.masks()[w.name]
        assert torch.equal(w.parameter.detach(), torch.where(kept, before[name], 0.0))


def test_soft_masks_hold_n_weights_a_group_and_grow_hard():
    model, steps = convnet().double(), 40
    optimizer = sgd(model)
    sparsifier = nm.Sparsifier(model, method("2:4")).attach(optimizer, steps)
    train(model, optimizer, batches(steps, dtype=torch.float64))
    w = weights(sparsifier)["hidden"].seen()
    spread = []
    for step in (0, steps // 2, steps - 1):
        soft = (sparsifier.method.used(w, At(step, step / steps)) / w.tensor).view(-1, 4)
        torch.testing.assert_close(soft.sum(-1), torch.full_like(soft[:, 0], 2.0), rtol=0, atol=1e-9)
        spread.append(float((soft * (1 - soft)).mean()))
    assert spread[0] > spread[1] > spread[2] and spread[2] < 1e-2


def test_kappa_and_tau_end_where_they_are_set():
    """At the first step kappa / tau of 7 / 2, halfway the means, just before the end of 9 / 0.5."""
    model = convnet().double()
    chosen = nm.MaskLLM("2:4", end=0.5, scale=(7.0, 9.0), temperature=(2.0, 0.5))
    sparsifier = nm.Sparsifier(model, chosen).attach(sgd(model), 1000)
    w = weights(sparsifier)["hidden"].seen()
    table = nm.maths.combinations.table(w.pattern, dtype=torch.float64)
    for progress, kappa, tau in ((0.0, 7.0, 2.0), (0.25, 8.0, 1.25), (0.5 - 1e-12, 9.0, 0.5)):
        drawn = noise.gumbel((32, 8, 6), 0, 3, w.name).double()
        soft = torch.softmax((kappa * w.state["logits"] + drawn) / tau, -1) @ table
        torch.testing.assert_close(chosen.used(w, At(3, progress)), w.tensor * soft.view(32, 32), rtol=0, atol=1e-9)
    hard = chosen.used(w, At(3, 0.5))
    assert torch.equal(hard != 0, sparsifier.masks()["hidden.weight"])


@pytest.mark.parametrize("prior, share", [("magnitude", 0.85), ("none", 0.0)])
def test_the_prior_favours_the_largest_magnitudes(prior, share):
    model = convnet()
    largest_kept = torch.tensor(largest(model.hidden.weight.detach().numpy(), 2, 4))
    sparsifier = nm.Sparsifier(model, method("2:4", prior=prior)).attach(sgd(model), 10)
    same = (sparsifier.masks()["hidden.weight"] == largest_kept).view(-1, 4).all(-1).double().mean()
    assert same >= share and (prior == "magnitude" or same < 0.4)


def test_the_gradient_of_logits_is_that_of_the_loss():
    """Central differences through the network, with the regularizer in the loss."""
    model, steps = convnet().double().eval(), 10
    chosen = nm.MaskLLM("2:4", lr=0.1, weight_decay=0.0, regularization=LAMBDA, scale=(10.0, 10.0))
    optimizer = sgd(model)
    sparsifier = nm.Sparsifier(model, chosen).attach(optimizer, steps)
    w, (x, y) = weights(sparsifier)["hidden"], batches(1, dtype=torch.float64)[0]

    def loss(place, change):
        logits = w.state["logits"].clone()
        logits[place] += change
        used = chosen.used(replace(w.seen(), state={**w.state, "logits": logits}), At(0, 0.0))
        out = torch.func.functional_call(model, {"hidden.weight": used}, (x,))
        return float(F.cross_entropy(out, y).detach() - LAMBDA * used.square().sum().detach())

    places = [(0, 0, 0), (3, 5, 2), (31, 7, 5), (12, 1, 4)]
    expected = [(loss(place, 1e-6) - loss(place, -1e-6)) / 2e-6 for place in places]
    F.cross_entropy(model(x), y).backward()
    optimizer.step()
    first = w.state["logits.exp_avg"] / 0.1  # Adam's first moment after one step is a tenth of the gradient
    torch.testing.assert_close([first[place].item() for place in places], expected, rtol=1e-5, atol=1e-10)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_take_no_gradient_in_that_is_not_finite(bad):
    model = convnet()
    optimizer = sgd(model)
    sparsifier = nm.Sparsifier(model, method("2:4")).attach(optimizer, 10)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    model.hidden.weight.grad[3, 5] = bad
    optimizer.step()
    for w in weights(sparsifier).values():
        assert all(tensor.isfinite().all() for tensor in w.state.values()) and w.parameter.isfinite().all()


def test_a_step_within_autocast_is_the_same_step():
    """Loops that step inside the block: sums over combinations must not be taken in bfloat16."""
    found = []
    for inside in (False, True):
        model, data = convnet(), batches(6)
        optimizer = sgd(model)
        with torch.autocast("cpu", torch.bfloat16, enabled=inside):
            sparsifier = nm.Sparsifier(model, method("2:4")).attach(optimizer, 6)
        for x, y in data:
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                F.cross_entropy(model(x), y).backward()
            with torch.autocast("cpu", torch.bfloat16, enabled=inside):
                optimizer.step()
        found.append([w.state["logits"] for w in weights(sparsifier).values()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_noise_depends_on_no_default_of_torch():
    expected = noise.gumbel((4, 6), 1, 2, "weight")
    try:
        torch.set_default_dtype(torch.float64)
        torch.set_default_device("meta")
        found = noise.gumbel((4, 6), 1, 2, "weight")
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    assert found.dtype == torch.float32 and torch.equal(found, expected)


def test_settings_that_make_no_sense_are_refused():
    for end in (0.0, 1.5):
        with pytest.raises(ScheduleError, match="maskllm"):
            nm.MaskLLM("2:4", end=end)
    for options in ({"prior": "wanda"}, {"scale": (1.0,)}, {"temperature": (4.0, 0.0)}):
        with pytest.raises(ConfigError, match=next(iter(options))):
            nm.MaskLLM("2:4", **options)
    model = convnet()
    with pytest.raises(ConfigError, match=r"4:16 for head.weight.*1,820 combinations"):
        nm.Sparsifier(model, nm.MaskLLM("2:4"), {"head": "4:16"}).attach(sgd(model), 4)


def test_training_goes_on_without_noise_after_the_end():
    """The mask is final: neither it nor the logits move."""
    model, steps = convnet(), 16
    optimizer = sgd(model)
    sparsifier = nm.Sparsifier(model, method("2:4", end=0.5)).attach(optimizer, steps)
    train(model, optimizer, batches(8))
    masks = sparsifier.masks()
    logits = {name: w.state["logits"].clone() for name, w in weights(sparsifier).items()}
    train(model, optimizer, batches(8))
    assert all(torch.equal(mask, sparsifier.masks()[name]) for name, mask in masks.items())
    assert all(torch.equal(before, weights(sparsifier)[name].state["logits"]) for name, before in logits.items())
