"""S-STE: as an explicit straight-through layer in float64, and what its paper promises of the projection."""

import numpy as np
import pytest
import torch
from torch import nn

import nmlearn as nm
from nets import sgd
from references import Behind, beside, check_shadow, groups, ungroup


def project(weight, n, m):
    rows = groups(weight, m)
    for row in rows:
        threshold = sorted(abs(row))[m - n - 1] if n < m else 0.0
        row[:] = [np.sign(v) * max(abs(v) - threshold, 0.0) for v in row]
    return ungroup(rows, weight.shape)


def straight(n, m):
    def build(layer, name, sparsifier):
        start = layer.weight.detach().numpy()
        soft = project(start, n, m)
        beta = (start * soft).sum() / (soft * soft).sum()  # found once
        return Behind(layer, lambda dense: (beta * project(dense, n, m), np.zeros_like(dense)))

    return build


def adamw(model):
    return torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.1)


def linear(weight, method, steps=1):
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
    with torch.no_grad():
        layer.weight.copy_(weight)
    optimizer = torch.optim.SGD(layer.parameters(), 1.0)
    return layer, optimizer, nm.Sparsifier(layer, method, {"*": method.pattern}).attach(optimizer, steps)


@pytest.mark.parametrize("optimizer", [sgd, adamw])
@pytest.mark.parametrize("pattern", ["2:4", "1:4", "3:8"])
def test_is_the_papers_method(pattern, optimizer):
    p = nm.Pattern(pattern)
    for _, sparsifier, ours, theirs in beside(nm.SSTE(pattern), straight(p.n, p.m), optimizer=optimizer):
        check_shadow(sparsifier, ours, theirs)
    sparsifier.finalize()


def test_it_is_continuous_across_changes_of_support():
    """On a line between two dense weights, a small step never moves the weight in use by more than twice as much."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(8, 16, generator=generator, dtype=torch.float64) for _ in range(2))
    method, steps = nm.SSTE("2:4"), 2000
    layer, optimizer, sparsifier = linear(a, method, steps)
    scale, jump, supports = sparsifier._weights[0].state["scale"].item(), 0.0, set()
    step = (b - a) / steps
    for _ in range(steps):
        before = layer.weight.detach().clone()
        layer.weight.grad = -step
        optimizer.step()
        jump = max(jump, float((layer.weight.detach() - before).abs().max()))
        supports.add(tuple(sparsifier.masks()["weight"].flatten().tolist()))
    assert len(supports) > 30  # the line crosses many changes of support
    assert jump <= scale * 2 * float(step.abs().max()) * (1 + 1e-9)


def test_beta_is_the_best_scale():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(8, 16, generator=generator, dtype=torch.float64)
    layer, _, sparsifier = linear(weight, nm.SSTE("1:4"))
    scale = sparsifier._weights[0].state["scale"].item()
    soft = layer.weight.detach() / scale
    errors = {beta: float((weight - beta * soft).square().sum()) for beta in (0.999 * scale, scale, 1.001 * scale)}
    assert scale > 1 and min(errors, key=errors.get) == scale


def test_low_precision_rounds_the_scaled_value_once():
    """The scale is no bfloat16 number, which would be off by up to 0.4 % in the same direction everywhere."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(64, 64, generator=generator).bfloat16()
    layer, _, sparsifier = linear(weight, nm.SSTE("2:4"))
    soft = torch.from_numpy(project(weight.float().numpy(), 2, 4)).bfloat16()
    exact = soft.double() * sparsifier._weights[0].state["scale"].double()
    assert torch.equal(layer.weight.detach(), exact.bfloat16())


def test_nothing_to_scale_is_scaled_by_one():
    """Weights of zeros, and M:M."""
    for weight, pattern in ((torch.zeros(4, 8), "2:4"), (torch.randn(4, 8), "4:4")):
        layer, _, sparsifier = linear(weight, nm.SSTE(pattern))
        assert sparsifier._weights[0].state["scale"].item() == 1.0 and torch.equal(layer.weight.detach(), weight)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_lost_weights_go_first(bad):
    weight = torch.tensor([[bad, 1.0, -2.0, 3.0], [bad, bad, -2.0, 0.5], [bad, bad, bad, bad]])
    layer, _, sparsifier = linear(weight, nm.SSTE("2:4"))
    used = layer.weight.detach() / sparsifier._weights[0].state["scale"]
    assert used.tolist() == [[0, 0, -1, 2], [0, 0, -2, 0.5], [0, 0, 0, 0]]
