"""Distances from a teacher's outputs, against sums that are written out, token by token."""

import math

import pytest
import torch

from nmlearn.maths.distances import divergence, relative_error


def values(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


KEEP = torch.tensor([[True, True, False], [True, False, False]])


@pytest.mark.parametrize("keep", [None, KEEP], ids=["all", "some"])
def test_relative_error_is_that_of_the_kept_tokens(keep):
    x, target = values(2, 3, 5), values(2, 3, 5, seed=1) + 4.0
    tokens = [(b, t) for b in range(2) for t in range(3) if keep is None or keep[b, t]]
    pairs = [(x[b, t, k].item(), target[b, t, k].item()) for b, t in tokens for k in range(5)]
    mean = sum(theirs for _, theirs in pairs) / len(pairs)
    expected = sum((ours - theirs) ** 2 for ours, theirs in pairs) / sum((theirs - mean) ** 2 for _, theirs in pairs)
    assert relative_error(x, target, keep).item() == pytest.approx(expected, rel=1e-12)
    assert relative_error(target, target, keep) == 0


@pytest.mark.parametrize("keep", [None, KEEP], ids=["all", "some"])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_divergence_is_that_of_softened_classes(keep, temperature):
    logits, target = values(2, 3, 4), values(2, 3, 4, seed=1)
    each = []
    for b, t in [(b, t) for b in range(2) for t in range(3) if keep is None or keep[b, t]]:
        q, p = ([math.exp(z / temperature) for z in some[b, t].tolist()] for some in (logits, target))
        q, p = ([weight / sum(some) for weight in some] for some in (q, p))
        each.append(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))
    expected = temperature**2 * sum(each) / len(each)
    assert divergence(logits, target, temperature, keep).item() == pytest.approx(expected, rel=1e-12)
    assert divergence(target, target, temperature, keep) == 0


@pytest.mark.parametrize("distance", [relative_error, lambda x, t, keep: divergence(x, t, 2.0, keep)])
def test_what_is_not_kept_has_no_influence(distance):
    x, target = values(2, 3, 4).requires_grad_(), values(2, 3, 4, seed=1)
    clean = distance(x, target, KEEP)
    (grad,) = torch.autograd.grad(clean, x)
    assert grad[KEEP].all() and not grad[~KEEP].any()
    with torch.no_grad():
        x[~KEEP], target[0, 2], target[1, 1] = math.nan, math.inf, math.nan
    spoilt = distance(x, target, KEEP)
    assert torch.equal(spoilt, clean) and torch.equal(torch.autograd.grad(spoilt, x)[0], grad)
    assert distance(x, target, torch.zeros_like(KEEP)) == 0, "no token, no distance"


def test_half_precision_is_compared_in_float32():
    x, target = values(4, 8, dtype=torch.bfloat16), values(4, 8, seed=1, dtype=torch.bfloat16)
    for distance in (relative_error, lambda a, b: divergence(a, b, 2.0)):
        assert distance(x, target).dtype == torch.float32
        assert torch.equal(distance(x, target), distance(x.float(), target.float()))


def test_classes_without_a_share_count_nothing():
    logits, target = values(1, 3).float(), values(1, 3, seed=1).float()
    alike = divergence(logits[:, :2], target[:, :2], 1.0)
    logits, target = (torch.cat([some[:, :2], torch.full((1, 1), -math.inf)], 1) for some in (logits, target))
    logits.requires_grad_()
    found = divergence(logits, target, 1.0)
    torch.testing.assert_close(found, alike)
    assert torch.autograd.grad(found, logits)[0].isfinite().all()


def test_a_constant_target_is_compared_all_the_same():
    same = torch.full((2, 3), 2.0)
    assert relative_error(same, same) == 0 and relative_error(same + 1, same).isfinite()
