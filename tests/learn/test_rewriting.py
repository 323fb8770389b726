"""Optimizers that write weights themselves: averages swapped in, wrappers behind the step, steps of their own.

The optimizers here are small forms of those that packages have; test_optimizer_sweep.py tries the packages' own.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

import nets
import nmlearn as nm
from nets import backward, batches, convnet, train
from nmlearn.errors import AttachError, ViolationError

STEPS = 12


class ScheduleFree(SGD):
    """Schedule-free SGD (Defazio et al., arXiv 2405.15682): the weight is y, the state has z, and eval() makes it x."""

    decay, training = 0.9, True

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for p in self.held():
            z = self.state[p].setdefault("z", p.clone())
            p.lerp_(z, 0.1).add_(p.grad, alpha=-0.01)
            z.sub_(p.grad, alpha=0.1)

    def held(self) -> list[torch.Tensor]:
        return [p for group in self.param_groups for p in group["params"] if p.grad is not None or self.state[p]]

    @torch.no_grad()
    def eval(self) -> None:
        for p in self.held() if self.training else ():
            p.lerp_(self.state[p]["z"], 1 - 1 / self.decay)
        self.training = False

    @torch.no_grad()
    def train(self) -> None:
        for p in () if self.training else self.held():
            p.lerp_(self.state[p]["z"], 1 - self.decay)
        self.training = True


class Rotated(ScheduleFree):
    """Moves weights without a gradient too, as SPlus does, and averages them in its step."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for p in self.held():
            ema = self.state[p].setdefault("ema", torch.zeros_like(p))
            self.state[p].setdefault("left", torch.eye(len(p)))  # a square weight has this shape too
            p.sub_(0.01 * torch.sign(p.grad.sum(0, keepdim=True) + 1e-3))
            ema.lerp_(p, 0.1)
            self.state[p]["z"] = ema


class Wrapper(Optimizer):
    """Slow weights behind the inner step, every ``k`` steps; torch calls no hooks around its step."""

    def __init__(self, inner: Optimizer, k: int = 1) -> None:
        self.fast, self.k, self.steps = inner, k, 0
        self.param_groups, self.state = inner.param_groups, defaultdict(dict)
        self.start()

    def start(self) -> None:
        self.slow = [p.detach().clone() for group in self.param_groups for p in group["params"]]

    def copies(self) -> list[torch.Tensor]:
        return self.slow

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        self.fast.step()
        self.steps += 1
        if self.steps % self.k == 0:
            for p, slow in zip([p for g in self.param_groups for p in g["params"]], self.copies(), strict=True):
                slow.add_(p.data - slow, alpha=0.5)
                p.data.copy_(slow)

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.fast.zero_grad(set_to_none)


class Lookahead(Wrapper):
    """The same with its slow weights in a state of its own."""

    def start(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["kept"] = p.detach().clone()

    def copies(self) -> list[torch.Tensor]:
        return [self.state[p]["kept"] for group in self.param_groups for p in group["params"]]


class Hooked(Wrapper):
    """Slow weights in a list, and torch's hooks around the step, as Magma and Trac have them."""

    def __init__(self, inner: Optimizer, k: int = 1) -> None:
        super().__init__(inner, k)
        slow = self.slow
        Optimizer.__init__(self, inner.param_groups, {})
        self.param_groups, self.slow = inner.param_groups, slow


class SAM(Optimizer):
    """Foret et al., arXiv 2010.01412, in the form of two steps that a loop calls, around another optimizer."""

    def __init__(self, params: Any, base: Any, **kwargs: Any) -> None:
        super().__init__(params, kwargs)
        self.base_optimizer = base(self.param_groups, **kwargs)
        self.param_groups = self.base_optimizer.param_groups

    @torch.no_grad()
    def first_step(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["old"] = p.clone()
                p.add_(p.grad, alpha=0.05)

    @torch.no_grad()
    def second_step(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                p.copy_(self.state[p].pop("old"))
        self.base_optimizer.step()


class Alone(SGD):
    """Steps by methods of its own, with no optimizer inside."""

    def first_step(self) -> None:
        """Nothing yet."""

    @torch.no_grad()
    def second_step(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(p.grad, alpha=0.01)


def square() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.Linear(16, 16, bias=False), nn.Linear(16, 5))


def attached(make: Callable[[Any], Any], method: Any = None, model: Any = None) -> tuple[Any, Any, nm.Sparsifier]:
    model = model or convnet()
    optimizer = make(model.parameters())
    return model, optimizer, nm.Sparsifier(model, method or nm.LBC("2:4", end=0.5)).attach(optimizer, STEPS)


def obeys(model: nn.Module, sparsifier: nm.Sparsifier) -> bool:
    weights = dict(model.named_parameters())
    views = [row.grouping.view(weights[row.name].detach()) for row in sparsifier.plan.sparse]
    return all(bool(((view != 0).sum(-1) <= 2).all()) for view in views)


@pytest.mark.parametrize("model", [convnet, square])
@pytest.mark.parametrize("kind", [ScheduleFree, Rotated])
def test_averages_that_eval_swaps_in_have_the_pattern(kind: type[ScheduleFree], model: Callable[[], Any]) -> None:
    network, optimizer, sparsifier = attached(lambda p: kind(p, 0.1), model=model())
    for data in (batches(STEPS), batches(1)):
        train(network, optimizer, data)
        optimizer.eval()
        assert obeys(network, sparsifier)
        optimizer.train()
    optimizer.eval()
    sparsifier.finalize()
    optimizer.train()
    optimizer.eval()
    assert obeys(network, sparsifier) and network.state_dict()[sparsifier.plan.sparse[0].name].any()
    left = [state["left"] for state in optimizer.state.values() if "left" in state]
    assert all(torch.equal(each, torch.eye(len(each))) for each in left)  # no average, whatever its shape


@pytest.mark.parametrize("kind", [ScheduleFree, Rotated])
def test_averages_under_a_mask_that_never_moves(kind: type[ScheduleFree]) -> None:
    network, optimizer, sparsifier = attached(lambda p: kind(p, 0.1), nm.OneShot("2:4"))
    train(network, optimizer, batches(STEPS))
    optimizer.eval()
    sparsifier.finalize()
    assert obeys(network, sparsifier)


@pytest.mark.parametrize("inner", [lambda p: SGD(p, 0.05, momentum=0.9), lambda p: AdamW(p, 1e-2)])
@pytest.mark.parametrize("kind", [Lookahead, Hooked])
def test_wrappers_that_write_behind_the_inner_step(kind: type[Wrapper], inner: Callable[[Any], Optimizer]) -> None:
    model, optimizer, sparsifier = attached(lambda p: kind(inner(p), k=2))

    def check(step: int) -> None:
        masks = sparsifier.masks()
        assert sparsifier.step == step + 1
        assert not any(model.get_parameter(name).detach()[~mask].any() for name, mask in masks.items())

    train(model, optimizer, batches(STEPS), after=check)
    sparsifier.finalize()
    assert obeys(model, sparsifier)


@pytest.mark.parametrize("method", [nm.OneShot("2:4"), nm.SRSTE("2:4")])
def test_pruned_weights_that_come_back_are_the_optimizers_doing(method: nm.Method) -> None:
    model, optimizer, _ = attached(lambda p: Wrapper(SGD(p, 0.05)), method)
    optimizer.slow = [torch.ones_like(slow) for slow in optimizer.slow]
    steps: list[int] = []
    with pytest.raises(AttachError, match="given Wrapper around SGD: it writes weights after the step"):
        train(model, optimizer, batches(STEPS), after=steps.append)
    assert steps == [0, 1, 2]


def test_pruned_weights_that_come_back_now_and_then() -> None:
    """Warned of at the third time, and named at the end."""
    model, optimizer, sparsifier = attached(lambda p: Wrapper(SGD(p, 0.05), k=3), nm.LBC("2:4", end=0.2))
    with pytest.warns(UserWarning, match="before 3 steps so far: Wrapper around SGD writes weights after the step"):
        train(model, optimizer, batches(STEPS))
    with pytest.raises(ViolationError, match="came back before 3 of the steps: Wrapper around SGD writes weights"):
        sparsifier.finalize()
    sparsifier.finalize(complete=True)


def test_a_wrapper_that_attach_was_not_given() -> None:
    model, inner, _ = attached(lambda p: SGD(p, 0.05), nm.OneShot("2:4"))
    outer = Wrapper(inner)
    outer.slow = [torch.ones_like(slow) for slow in outer.slow]
    with pytest.warns(
        UserWarning, match="SGD writes none after its step, so a wrapper around it, a callback"
    ) as caught:
        train(model, outer, batches(STEPS))
    assert [each.filename for each in caught] == [__file__]  # the line of the wrapper that steps


def test_one_load_is_nobodys_fault() -> None:
    model, optimizer, sparsifier = attached(lambda p: Lookahead(SGD(p, 0.05)), nm.OneShot("2:4"))
    for _ in range(2):
        train(model, optimizer, batches(3))
        nn.init.ones_(model.conv.weight)
    train(model, optimizer, batches(1))
    sparsifier.finalize()


def test_averages_over_dense_weights_behind_are_refused() -> None:
    with pytest.raises(AttachError, match="ScheduleFree: it averages the weights in use"):
        attached(lambda p: ScheduleFree(p, 0.1), nm.SRSTE("2:4"))


class Behind(Hooked):
    """Writes where autograd sees it."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        self.fast.step()
        for group in self.param_groups:
            for p in group["params"]:
                p.mul_(0.9)


def test_a_wrapper_that_writes_before_dense_weights_is_refused_at_its_first_step() -> None:
    model, optimizer, _ = attached(lambda p: Behind(SGD(p, 0.05)), nm.SRSTE("2:4"))
    with pytest.raises(AttachError, match="given Behind around SGD: it writes weights after the step"):
        train(model, optimizer, batches(1))


@pytest.mark.parametrize("method", [nm.LBC("2:4", end=0.5), nm.SRSTE("2:4")])
def test_two_steps_of_sam_count_as_the_one_inside(method: nm.Method) -> None:
    model, optimizer, sparsifier = attached(lambda p: SAM(p, SGD, lr=0.05), method)
    for x, y in batches(STEPS):
        for step in (optimizer.first_step, optimizer.second_step):
            backward(model, optimizer, (x, y))
            step()
    assert sparsifier.step == STEPS
    sparsifier.finalize()
    assert obeys(model, sparsifier)


def test_steps_that_nobody_sees_are_said_to_be_so() -> None:
    model, optimizer, sparsifier = attached(lambda p: Alone(p, 0.05))
    with pytest.warns(UserWarning, match="no step of Alone is seen: Alone also steps by first_step, second_step"):
        for batch in batches(25):
            backward(model, optimizer, batch)
            optimizer.second_step()
    with pytest.raises(ViolationError, match="Alone also steps by first_step, second_step, and only step"):
        sparsifier.finalize()


def test_attach_on_another_optimizer_is_said_while_training() -> None:
    model, attached_one, _ = attached(lambda p: SGD(p, 0.05))
    with pytest.warns(UserWarning, match=r"no step of SGD is seen; was attach called on this optimizer\?") as caught:
        train(model, SGD(model.parameters(), 0.05), batches(25))
    assert not attached_one.state and [each.filename for each in caught] == [nets.__file__]


def test_micro_batches_are_no_unseen_steps() -> None:
    model, optimizer, _ = attached(lambda p: SGD(p, 0.05))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for x, y in batches(40):
            F.cross_entropy(model(x), y).backward()
        optimizer.step()
