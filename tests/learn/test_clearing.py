"""Pruned weights stay at +0.0 whoever writes into weight, gradient or moments, and whatever the optimizer is."""

import pytest
import torch
import torch.nn.functional as F

import nmlearn as nm
from nets import batches, convnet, sgd, train

# The steps after the schedule are what is tested here.
pytestmark = pytest.mark.filterwarnings("ignore:optimizer step .* is beyond total_steps")

STEPS = 10
OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=1e-2, nesterov=True),
    "Adam": lambda p: torch.optim.Adam(p, 1e-2, amsgrad=True, weight_decay=0.1),
    "AdamW": lambda p: torch.optim.AdamW(p, 1e-2, weight_decay=0.1),
    "NAdam": lambda p: torch.optim.NAdam(p, 1e-2),
    "RAdam": lambda p: torch.optim.RAdam(p, 1e-2),
    "Adamax": lambda p: torch.optim.Adamax(p, 1e-2),
    "Adagrad": lambda p: torch.optim.Adagrad(p, 1e-2, initial_accumulator_value=0.1),
    "Adadelta": lambda p: torch.optim.Adadelta(p, 1.0),
    "RMSprop": lambda p: torch.optim.RMSprop(p, 1e-2, momentum=0.9, centered=True),
}


def finished(make=sgd):
    """A network whose schedule has ended, with everything it was trained with."""
    model = convnet()
    optimizer = make(model)
    sparsifier = nm.Sparsifier(model, nm.LBC("2:4", end=0.5)).attach(optimizer, STEPS)
    train(model, optimizer, batches(STEPS))
    return model, optimizer, sparsifier


def zeros(model, sparsifier):
    return not any(model.get_parameter(n).detach()[~mask].any() for n, mask in sparsifier.masks().items())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_zeros_stay_and_moments_of_pruned_weights_are_cleared(name):
    model, optimizer, sparsifier = finished(lambda m: OPTIMIZERS[name](m.parameters()))
    train(model, optimizer, batches(5), after=lambda _: zeros(model, sparsifier) or pytest.fail("not zero"))
    for key, mask in sparsifier.masks().items():
        state = optimizer.state[model.get_parameter(key)]
        alike = [t for t in state.values() if isinstance(t, torch.Tensor) and t.shape == mask.shape]
        assert alike and not any((t[~mask].abs() > 1e-7).any() for t in alike)  # Adamax adds its epsilon


def write_momentum(model, optimizer):
    optimizer.state[model.conv.weight]["momentum_buffer"].fill_(100.0)


def write_weight(model, optimizer):
    with torch.no_grad():
        model.conv.weight.fill_(1.0)


def write_past_autograd(model, optimizer):
    model.conv.weight.data.fill_(1.0)


def swap_weight(model, optimizer):
    model.conv.weight.data = torch.ones_like(model.conv.weight)


def load_optimizer(model, optimizer):
    saved = optimizer.state_dict()
    for state in saved["state"].values():
        state["momentum_buffer"] = torch.ones_like(state["momentum_buffer"])
    optimizer.load_state_dict(saved)


@pytest.mark.parametrize("write", [write_momentum, write_weight, write_past_autograd, swap_weight, load_optimizer])
def test_a_write_between_steps_is_undone_by_the_next(write):
    model, optimizer, sparsifier = finished()
    train(model, optimizer, batches(3))
    write(model, optimizer)
    train(model, optimizer, batches(4), after=lambda _: zeros(model, sparsifier) or pytest.fail("not zero"))


def add_noise(p):
    p.grad.add_(torch.randn_like(p.grad))


def add_noise_past_autograd(p):
    p.grad.data.add_(torch.randn_like(p.grad))


def replace(p):
    shape, p.grad = p.grad.shape, None  # another gradient, often in the very place of the one before
    p.grad = torch.empty(shape).normal_()


@pytest.mark.parametrize("touch", [add_noise, replace])
def test_a_gradient_that_others_touched_is_cleared_before_the_optimizer_reads_it(touch):
    seen = []
    model, optimizer, sparsifier = finished()
    optimizer.register_step_pre_hook(lambda *_: seen.append(model.conv.weight.grad.clone()))
    for touched in (False, True, True, False, True, False):
        optimizer.zero_grad()
        x, y = batches(1)[0]
        F.cross_entropy(model(x), y).backward()
        for p in model.parameters():
            if touched:
                touch(p)
        optimizer.step()
        assert zeros(model, sparsifier)
        assert not seen[-1][~sparsifier.masks()["conv.weight"]].any()


def test_noise_that_autograd_does_not_see_moves_no_pruned_weight():
    model, optimizer, sparsifier = finished()
    for _ in range(3):
        optimizer.zero_grad()
        x, y = batches(1)[0]
        F.cross_entropy(model(x), y).backward()
        for p in model.parameters():
            add_noise_past_autograd(p)
        optimizer.step()
        assert zeros(model, sparsifier)


def test_a_gradient_used_again_after_the_mask_has_changed():
    model = convnet()
    optimizer = sgd(model)
    sparsifier = nm.Sparsifier(model, nm.LBC("2:4", end=0.5)).attach(optimizer, 40)
    for i, (x, y) in enumerate(batches(40)):
        if not 15 <= i < 20:  # no new gradient while combinations are removed
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
        optimizer.step()
        assert zeros(model, sparsifier)


class Restless(torch.optim.SGD):
    """Moves every weight, whatever its gradient."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.add_(1.0)


def test_an_optimizer_that_moves_every_weight():
    model, optimizer, sparsifier = finished(lambda m: Restless(m.parameters(), 0.1))
    train(model, optimizer, batches(4), after=lambda _: zeros(model, sparsifier) or pytest.fail("not zero"))
