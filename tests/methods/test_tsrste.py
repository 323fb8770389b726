"""T-SR-STE: its masks by enumeration and by loops, in straight-through layers in float64."""

import functools
import itertools

import numpy as np
import pytest
import torch
from torch import nn

import nmlearn as nm
from nets import batches, convnet, sgd, train
from nmlearn.errors import ConfigError
from references import Behind, attached, beside, check_shadow, largest

DECAY = 2e-2  # the paper's would hardly show


@functools.cache
def listed(n, m):
    """Every tile with N in each row and column."""
    rows = [tuple(float(j in kept) for j in range(m)) for kept in itertools.combinations(range(m), n)]
    every = np.array(list(itertools.product(rows, repeat=m)))
    return every[(every.sum(1) == n).all(-1)]


def greedy(tile, n):
    """The largest first: with N = 1 it always leaves N in each row and column."""
    kept = np.zeros_like(tile)
    for place in np.argsort(-tile, axis=None):
        i, j = divmod(int(place), len(tile))
        if kept[i].sum() < n and kept[:, j].sum() < n:
            kept[i, j] = 1.0
    return kept


def solve(weight, n, m):
    """Tile by tile, at every kernel position."""
    mask = np.zeros_like(weight)
    for place in np.ndindex(weight.shape[2:]):
        for i in range(0, weight.shape[0], m):
            for j in range(0, weight.shape[1], m):
                at = (slice(i, i + m), slice(j, j + m), *place)
                tile = abs(weight[at])
                if m > 4:
                    mask[at] = greedy(tile, n)
                else:
                    mask[at] = max(listed(n, m), key=lambda kept, tile=tile: (kept * tile).sum())
    return mask


@pytest.mark.parametrize("pattern", ["2:4", "1:4", "1:8"])
def test_is_the_papers_method(pattern):
    """Twelve steps with three masks, solved at the start and behind steps 4 and 8."""
    p, steps, references = nm.Pattern(pattern), 12, []

    def build(layer, name, sparsifier):
        mask = [solve(layer.weight.detach().numpy(), p.n, p.m)]
        references.append((layer, mask))
        return Behind(layer, lambda dense: (mask[0] * dense, DECAY * (1 - mask[0]) * dense))

    changed = 0
    for step, sparsifier, ours, theirs in beside(
        nm.TSRSTE(pattern, DECAY, refreshes=3), build, steps, functools.partial(sgd, lr=0.4)
    ):
        if step in (4, 8):
            for layer, mask in references:
                old, mask[0] = mask[0], solve(layer.weight.detach().numpy(), p.n, p.m)
                changed += int((old != mask[0]).sum())
        check_shadow(sparsifier, ours, theirs)
    assert changed > 0
    sparsifier.finalize()


@pytest.mark.parametrize("pattern", ["2:4", "2:8", "4:8", "1:16"])
def test_the_transpose_has_the_pattern_too(pattern):
    p = nm.Pattern(pattern)
    model = convnet()
    optimizer, sparsifier = attached(model, nm.TSRSTE(pattern, refreshes=4))
    train(model, optimizer, batches(16))
    for mask in sparsifier.masks().values():
        by_columns = mask.transpose(0, 1).unflatten(1, (-1, p.m)).sum(2)
        assert bool((by_columns == p.n).all())
    sparsifier.finalize()


def test_outputs_that_make_no_tiles_have_the_ordinary_mask():
    layer = nn.Linear(8, 6, bias=False)
    kept = largest(layer.weight.detach().numpy(), 2, 4)
    attached(layer, nm.TSRSTE("2:4"), {"*": "2:4"})
    assert np.array_equal(layer.weight.detach().numpy() != 0, kept)


def test_lost_weights_go_first():
    layer = nn.Linear(4, 4, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[torch.nan, 1.0, 2.0, 3.0], *[[1.0] * 4] * 3]))
    _, sparsifier = attached(layer, nm.TSRSTE("2:4"), {"*": "2:4"})
    assert not sparsifier.masks()["weight"][0, 0] and bool(layer.weight.isfinite().all())


def test_masks_are_solved_as_often_as_it_says():
    model = convnet()
    optimizer = sgd(model)
    sparsifier = nm.Sparsifier(model, nm.TSRSTE("2:4", refreshes=5)).attach(optimizer, 20)
    seen = []
    train(model, optimizer, batches(20), after=lambda _: seen.append(sparsifier.advances // 3))
    assert seen == [0] * 3 + [1] * 4 + [2] * 4 + [3] * 4 + [4] * 5


def test_settings_that_make_no_sense_are_refused():
    for options in ({"refreshes": 0}, {"refreshes": 10**7}, {"decay": -1.0}):
        with pytest.raises(ConfigError, match=next(iter(options))):
            nm.TSRSTE("2:4", **options)
