"""Stepping weights ahead of torch's SGD: the same bits as SGD itself, and only where nobody can tell."""

import sys

import pytest
import torch
import torch.nn.functional as F

import nmlearn as nm
from nets import batches, convnet, train
from nmlearn.learn.fused_sgd import FusedSGD
from nmlearn.native import library as native

pytestmark = pytest.mark.skipif(native.library() is None, reason="the kernels are not built")

STEPS = 12
PLAIN = [
    dict(momentum=0.9),
    dict(momentum=0.9, weight_decay=1e-2),
    dict(momentum=0.5, weight_decay=1e-2, foreach=True),
    dict(momentum=0.9, foreach=False),
]
OTHERS = [
    dict(momentum=0.9, nesterov=True),
    dict(momentum=0.9, dampening=0.1),
    dict(momentum=0.9, maximize=True),
    dict(momentum=0.9, fused=True),
    dict(weight_decay=1e-2),
]


class OwnSGD(torch.optim.SGD):
    """May do anything."""


@pytest.fixture
def seen(monkeypatch):
    """The names of shapes that were stepped ahead, a list a step."""
    steps = []
    hide = FusedSGD.hide
    monkeypatch.setattr(FusedSGD, "hide", lambda self: (steps.append(len(self.stepped)), hide(self))[1])
    return steps


def run(make, pattern="2:4", prepare=lambda *_: None, data=None):
    model = convnet().to(memory_format=torch.channels_last)
    optimizer = make(model)
    sparsifier = nm.Sparsifier(model, nm.LBC(pattern, end=0.6)).attach(optimizer, STEPS)
    prepare(model, optimizer, sparsifier)
    losses, grads = train(model, optimizer, data or batches(STEPS)), [p.grad for p in model.parameters()]
    moments = [optimizer.state[p].get("momentum_buffer") for p in model.parameters()]
    return losses, [p.detach() for p in model.parameters()], grads, moments


def assert_equal(one, other):
    assert one[0] == other[0]
    for a, b in zip(one[1:], other[1:], strict=True):
        assert all(x is y is None or torch.equal(x, y) for x, y in zip(a, b, strict=True))


def never_ahead(monkeypatch):
    monkeypatch.setattr(FusedSGD, "_applies", lambda *_: False)


@pytest.mark.parametrize("pattern", ["2:4", "1:16"])
@pytest.mark.parametrize("options", PLAIN)
def test_has_the_bits_of_sgd(options, pattern, seen, monkeypatch):
    def make(model):
        return torch.optim.SGD(model.parameters(), torch.tensor(0.05), **options)

    ours = run(make, pattern)
    # Not in the first step, which makes the momentum buffers; when the schedule has ended, too.
    assert seen[0] == 0 and set(seen[1:]) == {3}
    assert all(grad is not None for grad in ours[2])
    never_ahead(monkeypatch)
    assert_equal(ours, run(make, pattern))


@pytest.mark.parametrize("options", OTHERS)
def test_any_other_sgd_steps_itself(options, seen):
    run(lambda model: torch.optim.SGD(model.parameters(), 0.05, **options))
    assert set(seen) == {0}


def test_a_subclass_steps_itself(seen):
    run(lambda model: OwnSGD(model.parameters(), 0.05, momentum=0.9))
    assert set(seen) == {0}


def plain(model):
    return torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=1e-3)


def noise_before(model, optimizer, sparsifier):
    optimizer.register_step_pre_hook(lambda *_: [p.grad.mul_(0.5) for p in model.parameters()] and None)


def test_a_hook_between_learning_and_the_step_has_its_say(seen, monkeypatch):
    ours = run(plain, prepare=noise_before)
    assert set(seen) == {0}
    never_ahead(monkeypatch)
    assert_equal(ours, run(plain, prepare=noise_before))


def test_an_earlier_hook_after_the_step_sees_gradients(seen):
    missing = []

    def make(model):
        optimizer = plain(model)
        optimizer.register_step_post_hook(lambda *_: missing.extend(p for p in model.parameters() if p.grad is None))
        return optimizer

    run(make)
    assert not missing and set(seen) == {0}


def test_later_hooks_after_the_step_see_gradients(seen):
    missing = []

    def prepare(model, optimizer, sparsifier):
        optimizer.register_step_post_hook(lambda *_: missing.extend(p for p in model.parameters() if p.grad is None))

    run(plain, prepare=prepare)
    assert not missing and 3 in seen


def test_groups_have_their_own_settings(seen, monkeypatch):
    def make(model):
        groups = [
            {"params": [model.conv.weight], "lr": 0.01, "weight_decay": 0.1},
            {"params": [p for p in model.parameters() if p is not model.conv.weight], "nesterov": True},
        ]
        return torch.optim.SGD(groups, 0.05, momentum=0.9)

    ours = run(make)
    assert max(seen) == 1
    never_ahead(monkeypatch)
    assert_equal(ours, run(make))


def test_closures(seen, monkeypatch):
    def step(model, optimizer, x, y):
        def closure():
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            return loss

        return optimizer.step(closure).item()

    def losses():
        model = convnet()
        optimizer = plain(model)
        nm.Sparsifier(model, nm.LBC("2:4", end=0.6)).attach(optimizer, STEPS)
        return [step(model, optimizer, x, y) for x, y in batches(STEPS)]

    ours = losses()
    assert 3 in seen
    never_ahead(monkeypatch)
    assert ours == losses()


def test_gradients_of_a_step_that_failed_do_not_come_back(monkeypatch):
    model = convnet()
    optimizer = plain(model)
    nm.Sparsifier(model, nm.LBC("2:4", end=0.6)).attach(optimizer, STEPS)
    train(model, optimizer, batches(2))
    with monkeypatch.context() as patch:
        patch.setattr(sys.modules["torch.optim.sgd"], "sgd", lambda *args, **kwargs: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(model, optimizer, batches(1))
    assert model.conv.weight.grad is None
    optimizer.zero_grad()
    optimizer.step()
    assert model.conv.weight.grad is None
