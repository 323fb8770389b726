"""Stepping weights ahead of torch's AdamW: the same bits as AdamW itself, and only where it steps tensor by tensor."""

import pytest
import torch

import nmlearn as nm
from nets import batches, convnet, train
from nmlearn.learn.fused_adamw import FusedAdamW
from nmlearn.native import library as native

pytestmark = pytest.mark.skipif(native.library() is None, reason="the kernels are not built")

STEPS = 12
PLAIN = [dict(), dict(weight_decay=0.1, betas=(0.9, 0.99)), dict(weight_decay=0.0), dict(eps=1e-6, foreach=False)]
OTHERS = [
    dict(amsgrad=True),
    dict(maximize=True),
    dict(fused=True),
    dict(foreach=True),
    dict(lr=torch.tensor(1e-3)),
    dict(betas=(0.4, 0.9)),
]
METHODS = {
    "lbc": nm.LBC("2:4", end=0.6),
    "lbc-1:16": nm.LBC("1:16", end=0.6),
    "gradual": nm.Gradual("2:4"),
    "oneshot": nm.OneShot("2:4"),
}


class OwnAdamW(torch.optim.AdamW):
    """May do anything."""


@pytest.fixture
def seen(monkeypatch):
    """How many weights were stepped ahead, step by step."""
    steps = []
    hide = FusedAdamW.hide
    monkeypatch.setattr(FusedAdamW, "hide", lambda self: (steps.append(len(self.stepped)), hide(self))[1])
    return steps


def run(make, method=METHODS["lbc"]):
    """Losses, and weights, gradients and everything that the optimizer remembers."""
    model = convnet().to(memory_format=torch.channels_last)
    optimizer = make(model.parameters())
    nm.Sparsifier(model, method).attach(optimizer, STEPS)
    losses = train(model, optimizer, batches(STEPS))
    tensors = [t for p in model.parameters() for t in (p.detach(), p.grad, *optimizer.state[p].values())]
    return losses, tensors


def never_ahead(monkeypatch):
    monkeypatch.setattr(FusedAdamW, "_applies", lambda *_: False)


def assert_equal(one, other):
    assert one[0] == other[0]
    assert all(torch.equal(a, b) for a, b in zip(one[1], other[1], strict=True))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("options", PLAIN)
def test_has_the_bits_of_adamw(options, method, seen, monkeypatch):
    def make(parameters):
        return torch.optim.AdamW(parameters, **{"lr": 1e-2, **options})

    ours = run(make, METHODS[method])
    assert seen[0] == 0 and seen[-1] == 3  # not in the first step, which makes the moments
    assert method == "gradual" or set(seen[1:]) == {3}
    never_ahead(monkeypatch)
    assert_equal(ours, run(make, METHODS[method]))


@pytest.mark.parametrize("options", OTHERS)
def test_any_other_adamw_steps_itself(options, seen):
    run(lambda parameters: torch.optim.AdamW(parameters, **{"lr": 1e-3, **options}))
    assert set(seen) == {0}


def test_a_subclass_steps_itself(seen):
    run(lambda parameters: OwnAdamW(parameters, 1e-3))
    assert set(seen) == {0}


def test_steps_are_counted_by_weight(seen, monkeypatch):
    """One that had no gradient for a while is behind the others; also after a load."""

    def trained():
        model = convnet()
        optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
        nm.Sparsifier(model, METHODS["lbc"]).attach(optimizer, STEPS)
        data = batches(STEPS)
        train(model, optimizer, data[:2])
        model.hidden.requires_grad_(False)
        train(model, optimizer, data[2:4])
        model.hidden.requires_grad_(True)
        optimizer.load_state_dict(optimizer.state_dict())
        train(model, optimizer, data[4:])
        counts = [optimizer.state[p]["step"].item() for p in (model.conv.weight, model.hidden.weight)]
        return counts, [p.detach() for p in model.parameters()]

    ours = trained()
    assert ours[0] == [STEPS, STEPS - 2] and 2 in seen and 3 in seen
    never_ahead(monkeypatch)
    assert_equal(ours, trained())
