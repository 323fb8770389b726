"""What is a step, and who holds which weight: hooks that torch calls twice, closures, rates and parameter groups."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Optimizer

import nmlearn as nm
from nets import backward, batches, convnet, same, train
from nmlearn.errors import AttachError

STEPS = 12


def attached(make: Callable[[Any], Any], method: Any = None) -> tuple[Any, Any, nm.Sparsifier]:
    model = convnet()
    optimizer = make(model.parameters())
    return model, optimizer, nm.Sparsifier(model, method or nm.LBC("2:4", end=0.5)).attach(optimizer, STEPS)


# Steps inside of steps


class Clipping(SGD):
    """Does something first, and then what its base class does. torch calls the hooks around both."""

    fails = False

    def step(self, closure: Any = None) -> Any:
        loss = super().step(closure)
        if self.fails:
            raise RuntimeError("out of memory")
        return loss


@pytest.mark.parametrize("method", [nm.LBC("2:4"), nm.SRSTE("2:4")])
def test_a_step_inside_of_a_step_is_one(method: nm.Method) -> None:
    """With the bits of the base class, a closure, and a step in between that fails."""
    ends = []
    for kind in (SGD, Clipping):  # the base class has been made by then
        model, optimizer, sparsifier = attached(lambda p, kind=kind: kind(p, 0.05, nesterov=True, momentum=0.9), method)
        for i, batch in enumerate(batches(STEPS)):
            optimizer.step(functools.partial(backward, model, optimizer, batch))
            assert sparsifier.step == i + 1
        sparsifier.finalize()
        ends.append(model.state_dict())
    assert same(*ends)


def test_a_step_that_fails_is_not_under_way_for_ever() -> None:
    SGD(convnet().parameters(), 0.05)
    model, optimizer, sparsifier = attached(lambda p: Clipping(p, 0.05))
    for optimizer.fails in (True, False, True, False, False):
        try:
            train(model, optimizer, batches(1))
        except RuntimeError:
            assert optimizer.fails
    assert sparsifier.step == 3


class Twice(SGD):
    """Evaluates its closure two times a step."""

    def step(self, closure: Any = None) -> None:
        closure()
        super().step(closure)


def test_a_closure_that_is_called_twice_a_step() -> None:
    model, optimizer, _ = attached(lambda p: Twice(p, 0.05))
    with pytest.raises(AttachError, match="Twice: it evaluates its closure several times a step"):
        optimizer.step(functools.partial(backward, model, optimizer, batches(1)[0]))


# Parameter groups


class Relative(Optimizer):
    """Without a learning rate to read, as transformers' Adafactor with relative steps."""

    def __init__(self, params: Any, **defaults: Any) -> None:
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.sub_(p.grad, alpha=0.01)


@pytest.mark.parametrize("defaults", [{}, {"lr": None}])
def test_an_optimizer_without_a_learning_rate(defaults: dict[str, Any]) -> None:
    for method in (nm.LBC("2:4"), nm.MaskLLM("2:4", lr=None)):
        with pytest.raises(AttachError, match="learns by the weights' own learning rate, and this optimizer has none"):
            attached(lambda p: Relative(p, **defaults), method)
    for method in (nm.Gradual("2:4"), nm.SRSTE("2:4"), nm.MaskLLM("2:4")):
        model, optimizer, sparsifier = attached(lambda p: Relative(p, **defaults), method)
        for batch in batches(STEPS):
            backward(model, optimizer, batch)
            optimizer.step(closure=None)
        sparsifier.finalize()


def two_groups(params: Any) -> Optimizer:
    every = list(params)
    return SGD([{"params": every[:3], "lr": 0.01}, {"params": every[3:]}], 0.05, momentum=0.9)


def test_groups_that_move_are_followed() -> None:
    """A score learns by the rate of its weight, wherever its group stands by now."""
    ends = []
    for moves in (False, True):
        model, optimizer, sparsifier = attached(two_groups)
        train(model, optimizer, batches(2))
        if moves:
            optimizer.add_param_group({"params": [nn.Parameter(torch.ones(3))], "lr": 9.0})
            optimizer.param_groups.reverse()
        train(model, optimizer, batches(STEPS - 2))
        sparsifier.finalize()
        ends.append(model.state_dict())
    assert same(*ends)


def test_a_group_that_is_gone() -> None:
    model, optimizer, _ = attached(two_groups)
    train(model, optimizer, batches(2))
    optimizer.param_groups.pop()
    with pytest.raises(AttachError, match=r"grouped\.weight: given SGD with other parameter groups than at attach"):
        train(model, optimizer, batches(1))
