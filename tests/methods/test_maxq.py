"""MaxQ: its soft mask by loops, in a straight-through layer in float64, and its schedule of dense groups."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import nmlearn as nm
from nets import batches, convnet, sgd, train
from nmlearn.errors import ConfigError, ScheduleError
from references import Behind, beside, check_shadow, groups, largest, ungroup

DECAY, TAU = 2e-2, 1e-2  # the paper's decay would hardly show


def ranks(magnitudes, share):
    """Of one slice: sigmoid above the middle of the gap at the cut, 0 below."""
    flat = sorted(magnitudes.ravel(), reverse=True)
    count = round(share * len(flat))
    middle = (flat[count - 1] + flat[count]) / 2
    return np.where(magnitudes > middle, 1 / (1 + np.exp(-(magnitudes - middle) / TAU)), 0.0)


def soft_mask(weight, n, m, dense_share):
    factor = np.ones_like(weight)
    for out in range(weight.shape[0]):
        factor[out] += ranks(abs(weight[out]), n / m)
    for place in np.ndindex(weight.shape[2:]):
        if weight.ndim > 2 and weight[0, 0].size > 1:
            factor[:, :, *place] += ranks(abs(weight[:, :, *place]), n / m)
    rows = groups(weight, m)
    smallest_first = sorted(range(len(rows)), key=lambda g: abs(rows[g]).sum())
    dense = np.zeros(rows.shape, bool)
    dense[smallest_first[: round(dense_share * len(rows))]] = True
    return np.where(largest(weight, n, m) | ungroup(dense, weight.shape), factor, 0.0)


def straight(n, m, start, end, steps, now):
    def used(dense):
        progress = now[0] / steps
        share = 0.0 if progress >= end else min(1.0, 1 - (progress - start) / (end - start))
        soft = soft_mask(dense, n, m, share)
        return soft * dense, DECAY * (1 - np.clip(soft, 0, 1)) * dense

    return lambda layer, name, sparsifier: Behind(layer, used)


def attached(model, method, steps=16):
    optimizer = sgd(model)
    return optimizer, nm.Sparsifier(model, method, {"*": method.pattern}).attach(optimizer, steps)


@pytest.mark.parametrize("start, end", [(0.0, 0.5), (0.25, 0.75)])
@pytest.mark.parametrize("pattern", ["2:4", "1:8"])
def test_is_the_papers_method(pattern, start, end):
    p, now, steps = nm.Pattern(pattern), [0], 12
    build = straight(p.n, p.m, start, end, steps, now)
    for step, sparsifier, ours, theirs in beside(nm.MaxQ(pattern, start, end, decay=DECAY), build, steps):
        now[0] = step
        check_shadow(sparsifier, ours, theirs)
    sparsifier.finalize()


def test_kept_weights_are_scaled_by_one_to_three():
    model = nn.Conv2d(16, 8, 3)
    _, sparsifier = attached(model, nm.MaxQ("2:4", end=0.0))
    kept, dense = sparsifier.masks()["weight"], sparsifier._weights[0].state["dense"]
    factors = (model.weight.detach() / dense)[kept]
    assert 1 <= factors.min() < 1.01 and 2.5 < factors.max() <= 3


@pytest.mark.parametrize("pattern", ["2:4", "1:4"])
def test_one_by_one_kernels_have_no_query_of_their_own(pattern):
    """There the paper asks filters alone, as for the same weight in a linear layer."""
    conv, linear = nn.Conv2d(16, 8, 1, bias=False), nn.Linear(16, 8, bias=False)
    with torch.no_grad():
        linear.weight.copy_(conv.weight.flatten(1))
    for layer in (conv, linear):
        attached(layer, nm.MaxQ(pattern, end=0.0))
    assert torch.equal(conv.weight.flatten(1), linear.weight)


def test_dense_groups_fall_linearly_and_are_those_of_smallest_norm():
    model, steps = convnet(), 16
    optimizer, sparsifier = attached(model, nm.MaxQ("2:4", 0.25, 0.75), steps)
    shares = []

    def look(step):
        mask = sparsifier.masks()["hidden.weight"].view(-1, 4)
        norms = {w.name: w.state["dense"] for w in sparsifier._weights}["hidden.weight"].abs().view(-1, 4).sum(-1)
        dense = mask.all(-1)
        shares.append(float(dense.float().mean()))
        if 0 < shares[-1] < 1:
            assert norms[dense].max() <= norms[~dense].min()

    train(model, optimizer, batches(steps), after=look)
    assert shares == [1.0] * 4 + [1 - k / 8 for k in range(1, 9)] + [0.0] * 4


def test_start_may_be_the_end():
    method = nm.MaxQ("2:4", 0.4, 0.4)
    assert [method.setting(method.pattern, p) for p in (0.0, 0.39, 0.4, 1.0)] == [1.0, 1.0, 0.0, 0.0]


def test_settings_that_make_no_sense_are_refused():
    for options in ({"start": 0.5, "end": 0.2}, {"end": 1.5}):
        with pytest.raises(ScheduleError, match="maxq"):
            nm.MaxQ("2:4", **options)
    for tau in (0.0, -1.0, math.nan):
        with pytest.raises(ConfigError, match="tau"):
            nm.MaxQ("2:4", tau=tau)
