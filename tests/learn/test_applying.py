"""One-shot methods without an optimizer."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import nets
import nmlearn as nm
from calibration_models import ByInputs, Readers, chain, normal
from nmlearn.errors import AttachError, ConfigError, DataError, PlanError


@pytest.fixture(autouse=True)
def _nothing_noted() -> None:
    ByInputs.noted.clear()


# Applying


def test_methods_without_needs_take_no_batches() -> None:
    model, other = chain(16, 16, 16, 5), chain(16, 16, 16, 5)
    first = nm.Sparsifier(model, nm.OneShot("2:4"))
    summary = first.apply()
    assert summary.density == 0.5 and summary.density_before == 1.0 and first.progress == 1.0
    nm.Sparsifier(other, nm.OneShot("2:4")).attach(nets.sgd(other), 1).finalize()
    assert nets.same(nets.snapshot(model), nets.snapshot(other))
    nm.Sparsifier(model, nm.Keep("2:4")).apply()
    optimizer = nets.sgd(model)
    first.attach(optimizer, 3)
    nets.train(model, optimizer, nets.batches(3, (16,)))
    first.finalize()


@pytest.mark.parametrize(
    "method", [nm.LBC("2:4"), nm.SRSTE("2:4"), nm.Gradual("2:4"), nm.OneShot("2:4", at=0.5), nm.Dense("2:4")], ids=repr
)
def test_methods_that_learn_are_refused(method: nm.Method) -> None:
    with pytest.raises(ConfigError, match="attach"):
        nm.Sparsifier(chain(16, 16, 4), method).apply([normal(2, 16)])


def test_what_cannot_be_applied_is_refused_before_anything_is_written() -> None:
    model, x = Readers(), normal(2, 5, 16)
    before = nets.snapshot(model)
    with pytest.raises(PlanError, match=r"rnn.*own code.*OneShot"):
        nm.Sparsifier(model, ByInputs("2:4")).apply([x])
    rules = {"cross": None, "rnn": None, "up": None, "own": None}
    with pytest.raises(PlanError, match=r"read\.weight: .*no batch called .*unused\.weight"):
        nm.Sparsifier(model, ByInputs("2:4"), rules).apply([x])
    rules |= {"read": None, "unused": None}
    with pytest.raises(ConfigError, match=r"give batches"):
        nm.Sparsifier(model, ByInputs("2:4"), rules).apply()
    for wrong in ([], x, iter([])):
        with pytest.raises(ConfigError, match="batches"):
            nm.Sparsifier(model, ByInputs("2:4"), rules).apply(wrong)
    with pytest.raises(ConfigError, match=r"encoder.*memory=5,000"):
        nm.Sparsifier(model, ByInputs("2:4"), rules).apply([x], memory=5000)
    with pytest.raises(ConfigError, match="no such need"):
        nm.calibrate(model, [x], needs="norms")  # type: ignore[arg-type]
    assert nets.same(before, nets.snapshot(model)) and not ByInputs.noted
    nm.Sparsifier(model, ByInputs("2:4"), rules).apply([x])


def test_weights_that_others_hold_are_refused() -> None:
    model = chain(16, 16, 16, 4)
    optimizer = nets.sgd(model)
    held = nm.Sparsifier(model, nm.LBC("2:4")).attach(optimizer, 2)
    for sparsifier in (held, nm.Sparsifier(model, nm.OneShot("2:4"))):
        with pytest.raises((AttachError, ConfigError), match="attach"):
            sparsifier.apply()
    held.detach()
    sparsifier = nm.Sparsifier(model, nm.OneShot("2:4"))
    model[0].weight = nn.Parameter(torch.ones(16, 16))
    with pytest.raises(AttachError, match=r"0\.weight.*another parameter"):
        sparsifier.apply()
    with pytest.raises(AttachError, match="no sparse weight"):
        nm.Sparsifier(model, nm.OneShot("2:4"), {"": None}).apply()


class DistributedDataParallel(nn.Module):
    """Stands for torch's, which needs a process group."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


def test_models_that_are_spread_out_are_refused() -> None:
    model = DistributedDataParallel(chain(16, 16, 16, 4))
    with pytest.raises(AttachError, match=r"DistributedDataParallel.*wrap the model afterwards"):
        nm.Sparsifier(model, ByInputs("2:4")).apply([normal(2, 16)])
    nm.Sparsifier(model, nm.OneShot("2:4")).apply()  # every rank removes the same
    with pytest.raises(AttachError, match=r"0\.weight.*meta"):
        nm.Sparsifier(chain(16, 16, 16, 4).to("meta"), nm.OneShot("2:4")).apply()


def test_solvers_are_not_autocast() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        nm.Sparsifier(chain(16, 16, 4), ByInputs("2:4")).apply([normal(8, 16)])


def test_inputs_that_are_not_finite_are_refused() -> None:
    x = normal(4, 16)
    x[1, 2] = math.nan
    for call in (nm.calibrate, lambda model, data: nm.Sparsifier(model, ByInputs("2:4")).apply(data)):
        with pytest.raises(DataError, match=r"0\.weight.*4 tokens"):
            call(chain(16, 16, 4), [x])
