"""Bi-Mask: as explicit backward passes in float64, and the permutations that it draws."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.grad import conv2d_input, conv2d_weight

import nmlearn as nm
from nets import batches, convnet, train
from nmlearn.errors import ConfigError
from references import attached, back, beside, bimask, largest, one_linear

DECAY = 2e-2  # the paper's would hardly show


def back_mask(forward, order, n, m):
    """Rows permuted, the N largest of every M consecutive rows in each column, rows put back."""
    rows = forward.reshape(len(forward), -1)
    kept = np.zeros(rows.shape, bool)
    for column, start in itertools.product(range(rows.shape[1]), range(0, len(rows), m)):
        some = [order[start + j] for j in range(m)]
        kept[sorted(some, key=lambda r: -abs(rows[r, column]))[:n], column] = True
    return kept.reshape(forward.shape)


class TwoMasks(torch.autograd.Function):
    """A linear layer or convolution: one weight forward, another one for the input gradient."""

    @staticmethod
    def forward(ctx, x, dense, used, back, layer):
        ctx.save_for_backward(x, dense, used, back)
        ctx.layer = layer
        if isinstance(layer, nn.Linear):
            return F.linear(x, used)
        return F.conv2d(x, used, None, layer.stride, layer.padding, layer.dilation, layer.groups)

    @staticmethod
    def backward(ctx, grad):
        (x, dense, used, back), layer = ctx.saved_tensors, ctx.layer
        if isinstance(layer, nn.Linear):
            dx, dw = grad @ back, grad.t() @ x
        else:
            how = (layer.stride, layer.padding, layer.dilation, layer.groups)
            dx, dw = conv2d_input(x.shape, back, grad, *how), conv2d_weight(x, dense.shape, grad, *how)
        return dx, dw + DECAY * (dense - used), None, None, None


class Reference(nn.Module):
    """A layer that learns in a dense weight; the order of rows is the library's."""

    def __init__(self, layer, w, n, m):
        super().__init__()
        self.layer, self.w, self.n, self.m = layer, w, n, m

    def in_use(self):
        dense = self.layer.weight.detach()
        return dense * torch.tensor(largest(dense.numpy(), self.n, self.m))

    def forward(self, x):
        used = self.in_use()
        back = used * torch.tensor(back_mask(used.numpy(), self.w.state["rows"].tolist(), self.n, self.m))
        out = TwoMasks.apply(x, self.layer.weight, used, back, self.layer)
        bias = self.layer.bias
        return out if bias is None else out + bias.view(-1, *[1] * (out.dim() - 2))


@pytest.mark.parametrize("pattern", ["2:4", "1:4"])
def test_is_the_papers_method(pattern):
    """Linear, Conv2d and grouped; permutations are drawn on the way."""
    p, orders = nm.Pattern(pattern), set()

    def build(layer, name, sparsifier):
        return Reference(layer, next(w for w in sparsifier._weights if w.name == f"{name}.weight"), p.n, p.m)

    for step, sparsifier, ours, theirs in beside(bimask(pattern, decay=DECAY), build, steps=12):
        assert sparsifier.step == step
        for name in ("conv", "grouped", "hidden"):
            layer = getattr(theirs, name)
            torch.testing.assert_close(layer.w.state["dense"], layer.layer.weight.detach(), rtol=0, atol=1e-10)
            torch.testing.assert_close(getattr(ours, name).weight.detach(), layer.in_use(), rtol=0, atol=1e-10)
        orders.add(tuple(theirs.hidden.w.state["rows"].tolist()))
    assert len(orders) == 6  # as it was, behind the first step, and four times
    sparsifier.finalize()


def test_the_permutation_drawn_is_the_best_of_the_candidates():
    """More of what the forward mask keeps survives than in the given order, and more under more candidates."""
    kept = []
    for candidates in (1, 20, 200):
        model = convnet()
        optimizer, sparsifier = attached(model, bimask("1:4", candidates=candidates, draws=1), steps=1)
        train(model, optimizer, batches(1))
        w = next(w for w in sparsifier._weights if w.name == "hidden.weight")
        assert sorted(w.state["rows"].tolist()) == list(range(32)) != w.state["rows"].tolist()
        kept.append(int((back(sparsifier, "hidden.weight") != 0).sum()))
    assert kept[0] < kept[1] < kept[2]


def test_the_input_gradient_has_the_pattern_along_the_outputs():
    layer, _, sparsifier = one_linear()
    w = sparsifier._weights[0]
    w.state["rows"].copy_(torch.randperm(8))
    columns = (back(sparsifier)[w.state["rows"]] != 0).view(2, 4, 16)
    assert columns.sum(1).max() == 2 and not torch.equal(back(sparsifier), layer.weight.detach())


def test_without_draws_rows_stay_in_their_order():
    model = convnet()
    optimizer, sparsifier = attached(model, bimask(draws=0), steps=4)
    train(model, optimizer, batches(4))
    assert all(w.state["rows"].tolist() == list(range(32)) for w in sparsifier._weights)


def test_outputs_that_make_no_groups_have_the_ordinary_input_gradient():
    layer = nn.Linear(16, 6)
    optimizer, sparsifier = attached(layer, rules={"*": "2:4"})
    x = torch.randn(4, 16, requires_grad=True)
    layer(x).sum().backward()
    assert torch.equal(x.grad, torch.ones(4, 6) @ layer.weight.detach())
    optimizer.step()
    assert sparsifier.step == 1


def test_settings_that_make_no_sense_are_refused():
    for options in ({"candidates": 0}, {"draws": -1}):
        with pytest.raises(ConfigError, match=f"method.options.{next(iter(options))}: "):
            bimask(**options)
