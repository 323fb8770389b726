"""Networks for tests of nm.accelerate, and a clock by which sparse is fast."""

from __future__ import annotations

import pytest
import torch

import nmlearn as nm
from nmlearn.acceleration import candidates, whole
from nmlearn.acceleration.timing import Timing
from nmlearn.lab import models
from nmlearn.lab.bench.weights import sparse_network_

ROUNDED = {"rows int8": 0.4, "bytes": 0.3}


@pytest.fixture(autouse=True)
def sparse_is_fast(monkeypatch):
    """Small layers are not faster: fake the times that a test needs."""

    def told(calls, **_):
        for call in calls.values():
            call()
        dense = ("eager", "prepacked", "now", "last")
        return Timing({n: 1.0 if n.startswith(dense) else ROUNDED.get(n, 0.5) for n in calls})

    monkeypatch.setattr(candidates, "interleaved", told)
    monkeypatch.setattr(whole, "interleaved", told)


def network(name="resnet8", pattern="1:4", size=(3, 32, 32)):
    torch.manual_seed(0)
    return sparse_network_(models.build(name, classes=10, input_shape=size), pattern)


def same(model, reference, x, tolerance=1e-5):
    with torch.inference_mode():
        got, expected = model(x), reference(x)
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))


def packed(model):
    return {name for name, m in model.named_modules() if isinstance(m, nm.PackedLinear | nm.PackedConv2d)}
