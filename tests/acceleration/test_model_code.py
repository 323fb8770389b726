"""Models whose code looks at its layers: it runs as before, or the model is put back with an error that says why."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nmlearn as nm
from accelerated import packed, same, sparse_is_fast  # noqa: F401  (a fixture)
from nmlearn.acceleration import replacement
from nmlearn.acceleration.observing import observe
from nmlearn.errors import KernelError
from nmlearn.lab.bench.weights import sparse_
from nmlearn.native import library as native

pytestmark = pytest.mark.skipif(not native.isa(), reason="the CPU kernels are not built")


class Padded(nn.Module):
    """Pads as TensorFlow does, by the geometry of its convolution, as MobileNet of transformers does."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(16, 16, (3, 5), stride=2, dilation=(1, 1))
        sparse_(self.conv.weight, "2:4")

    def forward(self, x):
        pads = []
        for length, kernel, step, far in zip(
            x.shape[-2:], self.conv.kernel_size, self.conv.stride, self.conv.dilation, strict=True
        ):
            total = max((-(-length // step) - 1) * step + far * (kernel - 1) + 1 - length, 0)
            pads = [total // 2, total - total // 2, *pads]
        assert self.conv.padding_mode == "zeros" and not self.conv.transposed
        return self.conv(F.pad(x, pads))


class Cast(nn.Module):
    """Gives its last layer what is of the weight's type, as T5 does."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(16, 32), nn.Linear(32, 16)
        for layer in (self.first, self.last):
            sparse_(layer.weight, "1:4")

    def forward(self, x):
        x = F.relu(self.first(x))
        if x.dtype != self.last.weight.dtype:
            x = x.to(self.last.weight.dtype)
        return self.last(x)


class CastIfTensor(Cast):
    """As T5 itself writes it: a trace has no tensor there, and drops the cast."""

    def forward(self, x):
        x = F.relu(self.first(x))
        if isinstance(self.last.weight, torch.Tensor) and x.dtype != self.last.weight.dtype:
            x = x.to(self.last.weight.dtype)
        return self.last(x)


def test_code_that_reads_the_geometry_of_a_layer():
    model, x = nn.Sequential(Padded()).eval(), torch.randn(2, 16, 9, 9)
    reference = copy.deepcopy(model)
    nm.accelerate(model, x, cache=None)
    assert packed(model) == {"0.conv"}
    same(model, reference, x)


def test_a_layer_whose_weight_is_read_next_to_its_calls_stays_dense():
    model, x = nn.Sequential(Cast()).eval(), torch.randn(3, 16)
    reference, parameters = copy.deepcopy(model), dict(model.named_parameters())
    report = nm.accelerate(model, x, cache=None)
    assert packed(model) == {"0.first"}
    assert [row.why for row in report.rows if not row.chosen] == ["its parent reads the weight directly"]
    assert type(model[0].last._parameters) is dict and model[0].last.weight is parameters["0.last.weight"]
    assert not model[0].last._forward_hooks and not model[0].last._forward_pre_hooks
    same(model, reference, x)


def test_a_layer_whose_weight_only_the_replaced_code_reads_is_packed(monkeypatch):
    model, x = nn.Sequential(CastIfTensor()).eval(), torch.randn(3, 16)
    seen, reference = observe(model, lambda: model(x)), copy.deepcopy(model)
    assert seen.read == {"0.last"} and replacement.still_read(model, seen) == set()
    with monkeypatch.context() as patched:  # on a GPU no code is replaced
        patched.setattr(replacement, "gpu_of", lambda device: object())
        assert replacement.still_read(model, seen) == {"0.last"}
    nm.accelerate(model, x, cache=None)
    assert packed(model) == {"0.first", "0.last"} and "weight" not in dict(model[0].last.named_parameters())
    same(model, reference, x)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_model_of_one_layer_stays_as_it_is(compiled):
    layer = nn.Linear(16, 16).eval()
    sparse_(layer.weight, "2:4")
    model = torch.compile(layer, backend="eager") if compiled else layer
    report = nm.accelerate(model, torch.randn(3, 16), cache=None)
    assert [(row.chosen, row.why.partition(",")[0]) for row in report.rows] == [(False, "it is a whole model")]


def test_what_is_inside_of_a_compiled_model_is_replaced():
    model = nn.Sequential(Padded(), nn.ReLU()).eval()
    reference, x = copy.deepcopy(model), torch.randn(2, 16, 9, 9)
    compiled = torch.compile(model, backend="eager")
    report = nm.accelerate(compiled, x, cache=None)
    assert [row.chosen for row in report.rows] == [True] and packed(model) == {"0.conv"}
    assert compiled._orig_mod is model
    same(compiled, reference, x)


class Looks(nn.Module):
    """Computes something else where its layer is not a Linear; for its second argument its code is not traced."""

    def __init__(self, other):
        super().__init__()
        self.layer, self.other = nn.Linear(16, 16), other
        sparse_(self.layer.weight, "1:4")

    def forward(self, x, _=None):
        return self.layer(x) if isinstance(self.layer, nn.Linear) else self.other(self, x)


@pytest.mark.parametrize(
    ("other", "wrong"),
    [
        (lambda m, x: m.layer.no_such_attribute, "AttributeError: .*no_such_attribute"),
        (lambda m, x: m.layer(x[:, 1:]), "KernelError: .*the layer expects"),
        (lambda m, x: (m.layer(x), x), r"outputs of shapes \[\(2, 16\)\].*have the shapes \[\(2, 16\), \(2, 16\)\]"),
        (lambda m, x: (), r"outputs of shapes \[\(2, 16\)\].*have the shapes \[\]"),
        (lambda m, x: m.layer(x)[:1], r"have the shapes \[\(1, 16\)\]"),
        (lambda m, x: m.layer(x) * 2, "an output differs by up to"),
        (lambda m, x: m.layer(x).masked_fill(x > 1, torch.nan), "an output differs by up to nan"),
        (lambda m, x: m.layer(x).masked_fill(x > 1, torch.inf), "an output differs by up to inf"),
    ],
    ids=["an error", "an error of ours", "more", "fewer", "smaller", "differing", "nan", "infinite"],
)
def test_a_model_that_does_something_else_with_packed_layers_is_put_back(other, wrong):
    model, x = nn.Sequential(Looks(other)).eval(), 2 * torch.randn(2, 16)
    block, layer, reference = model[0], model[0].layer, copy.deepcopy(model)
    with pytest.raises(KernelError, match=f"{wrong}.*the model was restored; leave it dense") as caught:
        nm.accelerate(model, x, cache=None)
    assert caught.value.where == "accelerate"
    assert model[0] is block and block.layer is layer
    same(model, reference, x, 0)


def test_outputs_that_are_infinite_before_and_after_are_equal():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(16, 16)
            sparse_(self.layer.weight, "1:4")

        def forward(self, x):
            return self.layer(x).masked_fill(x > 0, -torch.inf), self.layer(x).masked_fill(x > 0, torch.nan)

    model = nn.Sequential(Masked()).eval()
    nm.accelerate(model, torch.randn(4, 16), cache=None)
    assert packed(model) == {"0.layer"}
