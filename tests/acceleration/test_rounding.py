"""Rounded kernels in nm.accelerate: offered where asked for, next to the others, with their errors, within a budget."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import nmlearn as nm
from accelerated import network, packed, same, sparse_is_fast  # noqa: F401  (a fixture)
from nmlearn.acceleration import candidates, rounding, whole
from nmlearn.acceleration.fusing import Choice
from nmlearn.acceleration.timing import Timing
from nmlearn.errors import KernelError
from nmlearn.lab.bench.weights import sparse_
from nmlearn.native import library as native

pytestmark = pytest.mark.skipif(not native.isa(), reason="the CPU kernels are not built")


def layers(model: nn.Module) -> set[str]:
    return {m.layout for m in model.modules() if isinstance(m, nm.PackedLinear | nm.PackedConv2d)}


def test_rounded_activations_are_close_and_reported():
    model, x = network("vit"), torch.randn(2, 3, 32, 32)
    reference = copy.deepcopy(model)
    report = nm.accelerate(model, x, activations="int8", cache=None)
    assert layers(model) == {"bytes"}
    chosen = [row for row in report.rows if row.chosen]
    assert chosen and all(row.kernel == "bytes" and 1e-4 < row.error < 0.05 for row in chosen)
    with torch.inference_mode():
        expected = reference(x)
        change = float((model(x) - expected).norm() / expected.norm())
    assert report.change == pytest.approx(change, rel=1e-3)
    assert "bytes (error " in str(report) and f"by {change:.2%} (rms)" in str(report)
    same(model, reference, x, 0.2)


def test_rounded_pointwise_convolutions():
    """Those of one pixel, stride 1 and one group; with what follows them folded in."""
    model, x = network("resnet50", size=(3, 64, 64)), torch.randn(1, 3, 64, 64)
    nm.accelerate(model, x, activations="int8", cache=None)
    for module in model.modules():
        if isinstance(module, nm.PackedConv2d):
            pointwise = module.kernel_size == (1, 1) and module.stride == (1, 1)
            assert (module.layout == "bytes") == pointwise
    assert layers(model) >= {"bytes"} and len(layers(model)) > 1


def test_nothing_is_rounded_unasked():
    model, x = network("vit"), torch.randn(2, 3, 32, 32)
    report = nm.accelerate(model, x, cache=None)
    assert packed(model) and "bytes" not in layers(model)
    assert all(m.scale is None for m in model.modules() if isinstance(m, nm.PackedLinear))
    assert report.change is None and all(row.error is None for row in report.rows)
    assert "rounded" not in str(report)


@pytest.mark.parametrize("asked", [{"activations": "int8"}, {"int8": True}])
def test_faster_exact_kernels_are_chosen_all_the_same(monkeypatch, asked):
    times = {"rows": 0.2, "tokens": 0.4, "rows int8": 0.3, "bytes": 0.3, "after": 0.5}
    for module in (candidates, whole):
        monkeypatch.setattr(
            module,
            "interleaved",
            lambda calls, **_: Timing({n: times.get(n, 1.0) for n in calls}),
        )
    model = network("vit")
    report = nm.accelerate(model, torch.randn(2, 3, 32, 32), cache=None, **asked)
    assert layers(model) == {"rows"} and report.change is None


def outlying() -> tuple[nn.Module, torch.Tensor]:
    """Two layers, whose first sees one value that makes the steps of all others coarse."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64)).eval()
    for layer in (model[0], model[2]):
        sparse_(layer.weight, "1:4")
    with torch.no_grad():
        model[0].weight[:, 0] = 0
    x = torch.randn(8, 64)
    x[:, 0] = 1e4
    return model, x


def test_a_layer_with_a_large_error_gets_another_kernel():
    model, x = outlying()
    reference = copy.deepcopy(model)
    report = nm.accelerate(model, x, activations="int8", cache=None)
    assert model[0].layout != "bytes" and model[2].layout == "bytes"
    first, last = report.rows
    assert first.chosen and first.error is None and "bytes: a relative error of" in first.why
    assert "over 5.0%" in first.why
    assert last.error < 0.05
    same(model, reference, x, 0.1)
    model, x = outlying()
    nm.accelerate(model, x, activations="int8", int8=True, cache=None)  # rounded weights are within the budget
    assert model[0].layout == "rows" and model[0].scale is not None and model[2].layout == "bytes"


def test_no_budget_no_rounding():
    model, x = outlying()
    report = nm.accelerate(model, x, activations="int8", int8=True, layer_error=0.0, cache=None)
    assert packed(model) == {"0", "2"} and report.change is None
    assert all(m.scale is None for m in (model[0], model[2]))


def test_outputs_that_are_not_finite_have_no_error_within_a_budget():
    model, x = outlying()
    x[3, 5] = torch.inf
    choice = Choice(model[0], nm.Pattern("1:4"), "bytes", "0.weight")
    with torch.inference_mode():
        error = rounding.layer_errors(model, lambda: model(x), {"0": choice})["0"]
    assert error != error
    assert not model[0]._forward_hooks


@pytest.mark.parametrize(
    ("asked", "match"),
    [({"activations": "int4"}, "choose \"float\" or \"int8\""), ({"layer_error": -0.1}, "0 or more"),
     ({"layer_error": float("nan")}, "0 or more")],
)  # fmt: skip
def test_wrong_arguments(asked, match):
    model, x = outlying()
    with pytest.raises(KernelError, match=match):
        nm.accelerate(model, x, cache=None, **asked)
    assert not packed(model)


def test_the_change_of_outputs():
    before, now = (
        {"a": torch.tensor([3.0, 4.0]), "b": torch.tensor([1])},
        {"a": torch.tensor([3.0, 4.5]), "b": torch.tensor([2])},
    )
    assert rounding.output_change(before, now) == pytest.approx(0.1)
    zeros = torch.zeros(2)
    assert rounding.output_change(zeros, zeros) == 0
    assert rounding.output_change(zeros, zeros + 1) == float("inf")
