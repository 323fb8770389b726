"""The compiled removal of combinations leaves the survivors that the PyTorch path leaves."""

import pytest
import torch

import nmlearn as nm
from nmlearn.maths import elimination
from nmlearn.native import library as native
from nmlearn.native import removal

pytestmark = pytest.mark.skipif(native.library() is None, reason="the kernels are not built")

PATTERNS = ["1:2", "2:4", "3:4", "1:4", "2:8", "4:8", "7:8", "1:16", "2:16", "1:64"]


def scores_of(kind, pattern, groups=2003):
    """Scores of weights, some with many ties."""
    if kind == "ties":
        return torch.randint(-2, 3, (groups, pattern.m)).float() / 8
    if kind == "nearly equal":  # neighbouring floats, as scores are after a few steps
        return 1 + torch.randint(-3, 4, (groups, pattern.m)) * torch.finfo(torch.float32).eps
    return torch.randn(groups, pattern.m)


def reduce(scores, pattern, counts):
    alive, kept = torch.ones(len(scores), pattern.combinations, dtype=torch.bool), []
    for count in counts:
        kept.append(elimination.combinations_(alive, scores, pattern, count))
        kept.append(alive.clone())
    return kept


@pytest.mark.parametrize("kind", ["random", "ties", "nearly equal"])
@pytest.mark.parametrize("text", PATTERNS)
def test_survivors_are_those_of_the_pytorch_path(text, kind, monkeypatch):
    pattern = nm.Pattern(text)
    scores, c = scores_of(kind, pattern), pattern.combinations
    counts = sorted({c, c - 1, max(1, c // 2), max(1, c // 3), 1}, reverse=True)
    ours = reduce(scores, pattern, counts)
    monkeypatch.setattr(removal, "_library", lambda: None)
    theirs = reduce(scores, pattern, counts)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_scores_may_lie_in_any_order_of_dimensions(monkeypatch):
    pattern = nm.Pattern("2:4")
    weight = torch.randn(6, 8, 3, 3).to(memory_format=torch.channels_last)
    scores = weight.unflatten(1, (2, 4)).movedim(2, -1)
    ours, theirs = (torch.ones(*scores.shape[:-1], 6, dtype=torch.bool) for _ in range(2))
    kept = elimination.combinations_(ours, scores, pattern, 2)
    monkeypatch.setattr(removal, "_library", lambda: None)
    assert torch.equal(kept, elimination.combinations_(theirs, scores, pattern, 2))
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("strange", ["many", "double", "explicit"])
def test_the_rest_is_left_to_pytorch(strange, monkeypatch):
    pattern = nm.Pattern("3:16" if strange == "many" else "2:4")  # 560 combinations
    scores = torch.randn(50, pattern.m, dtype=torch.float64 if strange == "double" else torch.float32)
    explicit = strange == "explicit"
    done = []
    real = removal.combinations_
    monkeypatch.setattr(removal, "combinations_", lambda *args: done.append(real(*args)) or done[-1])
    alive = torch.ones(50, pattern.combinations, dtype=torch.bool)
    scores = torch.randn(50, pattern.combinations) if explicit else scores
    kept = elimination.combinations_(alive, scores, pattern, 1, explicit=explicit)
    assert done == ([] if explicit else [False])
    assert (kept.sum(-1) == pattern.n).all() and (alive.sum(-1) == 1).all()
