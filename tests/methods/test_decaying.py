"""MdGf and SdGf: their masks by loops in straight-through layers in float64, over whole schedules."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import nmlearn as nm
from nets import batches, convnet, sgd, train
from nmlearn.errors import ConfigError, ScheduleError
from references import Behind, beside, call, check_shadow, largest

STEPS = 16


def left(fall, rate, start, end, progress):
    if progress >= end:
        return 0.0
    done = max(0.0, progress - start) / (end - start)
    return 1 - done if fall == "linear" else math.exp(-rate * done)


class Product(nn.Module):
    """A layer with W (m + (1 - m) b) in its graph, m and b being constants: autograd has the derivative."""

    def __init__(self, layer, factor):
        super().__init__()
        self.layer, self.factor = layer, factor

    def in_use(self):
        return self._product().detach()

    def _product(self):
        return self.layer.weight * torch.from_numpy(self.factor(self.layer.weight.detach().numpy()))

    def forward(self, x):
        return call(self.layer, x, self._product())


@pytest.mark.parametrize("gradient", ["straight", "product"])
@pytest.mark.parametrize("fall, start, end", [("linear", 0.0, 0.5), ("exponential", 0.25, 0.75)])
@pytest.mark.parametrize("pattern", ["2:4", "1:8"])
def test_mdgf_is_the_papers_method(pattern, fall, start, end, gradient):
    p, now = nm.Pattern(pattern), [0]

    def factor(dense):
        kept = largest(dense, p.n, p.m)
        return np.where(kept, 1.0, left(fall, 3.0, start, end, now[0] / STEPS))

    def straight(layer, name, sparsifier):
        return Behind(layer, lambda dense: (dense * factor(dense), np.zeros_like(dense)))

    def derived(layer, name, sparsifier):
        return Product(layer, factor)

    method = nm.MdGf(pattern, start, end, fall, rate=3.0, gradient=gradient)
    for step, sparsifier, ours, theirs in beside(method, straight if gradient == "straight" else derived, STEPS):
        now[0] = step
        check_shadow(sparsifier, ours, theirs)
    sparsifier.finalize()


STAGES = {  # written by hand, from the paper's rule
    ("2:4", "stepwise"): ["3:4", "2:4"],
    ("1:4", "stepwise"): ["3:4", "2:4", "1:4"],
    ("1:8", "stepwise"): ["7:8", "4:8", "2:8", "1:8"],
    ("3:8", "stepwise"): ["7:8", "4:8", "3:8"],
    ("1:2", "stepwise"): ["1:2"],
    ("1:1", "stepwise"): ["1:1"],
    ("4:4", "stepwise"): ["4:4"],
    ("1:4", "geometric"): ["8:32", "4:16", "2:8", "1:4"],
    ("1:16", "geometric"): ["4:64", "2:32", "1:16"],
    ("2:64", "geometric"): ["2:64"],
}


@pytest.mark.parametrize("pattern, stages", STAGES)
def test_stages_follow_one_another_in_equal_times(pattern, stages):
    expected, found = STAGES[pattern, stages], []
    method = nm.SdGf(pattern, 0.2, 0.8, stages)
    for step in range(101):
        stage = method.setting(method.pattern, step / 100)
        found.append(str(method._patterns(method.pattern)[stage - 1]) if stage else "dense")
    before, during, after = found[:20], found[20:80], found[80:]
    assert set(before) == {"dense"} and set(after) == {pattern}
    early = expected[:-1] or [pattern]
    times = [during.count(each) for each in early]
    assert list(dict.fromkeys(during)) == early and max(times) - min(times) <= 1


@pytest.mark.parametrize("stages", ["stepwise", "geometric"])
@pytest.mark.parametrize("pattern", ["2:4", "1:4", "1:8"])
def test_sdgf_is_the_papers_method(pattern, stages):
    """Frames of more than 16 do not fit every layer: there the first that does."""
    p, now = nm.Pattern(pattern), [0]
    if stages == "geometric":
        all_stages = [(k * p.n, k * p.m) for k in (8, 4, 2, 1)]
    else:
        all_stages = [tuple(map(int, each.split(":"))) for each in STAGES[pattern, stages]]

    def used(dense):
        progress = now[0] / STEPS
        number = len(all_stages) - 1 if progress >= 0.5 else int(progress / 0.5 * (len(all_stages) - 1))
        n, m = next((n, m) for n, m in all_stages[number:] if dense.shape[1] % m == 0)
        return dense * largest(dense, n, m), np.zeros_like(dense)

    def build(layer, name, sparsifier):
        return Behind(layer, used)

    for step, sparsifier, ours, theirs in beside(nm.SdGf(pattern, stages=stages), build, STEPS):
        now[0] = step
        check_shadow(sparsifier, ours, theirs)
    sparsifier.finalize()


DENSITIES = [
    (nm.MdGf("1:4"), [1.0] * 8 + [0.25] * 9),
    (nm.SdGf("1:4"), [0.75] * 4 + [0.5] * 4 + [0.25] * 9),
    (nm.SdGf("1:4", stages="geometric"), [0.25] * 17),
]


@pytest.mark.parametrize("method, expected", DENSITIES)
def test_density_falls_to_the_pattern(method, expected):
    model = convnet()
    optimizer = sgd(model)
    sparsifier = nm.Sparsifier(model, method).attach(optimizer, STEPS)
    found = [sparsifier.status()[0].density]
    train(model, optimizer, batches(STEPS), after=lambda _: found.append(sparsifier.status()[0].density))
    assert found == expected


def test_a_frame_keeps_its_largest_whatever_group_they_are_in():
    weight = torch.tensor([[8.0, 7.0, 6.0, 5.0, 0.1, 0.2, 0.3, 0.4]])
    layer = nn.Linear(8, 1, bias=False)
    layer.weight.data.copy_(weight)
    optimizer = sgd(layer)
    nm.Sparsifier(layer, nm.SdGf("1:4", 0.0, 1.0, "geometric"), {"*": "1:4"}).attach(optimizer, 2)
    assert layer.weight.tolist() == [[8.0, 7.0, 0, 0, 0, 0, 0, 0]]  # 2:8


def test_settings_that_make_no_sense_are_refused():
    for kind, name in ((nm.MdGf, "mdgf"), (nm.SdGf, "sdgf")):
        for options in ({"start": 0.5, "end": 0.2}, {"end": 1.5}, {"start": -0.1}):
            with pytest.raises(ScheduleError, match=name):
                kind("2:4", **options)
    with pytest.raises(ConfigError, match="rate"):
        nm.MdGf("2:4", rate=0.0)
