"""What references of methods share: the dense weight behind, groups cut by hand, and training beside the library."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import nmlearn as nm
from nets import batches, convnet, sgd

LAYERS = ("conv", "grouped", "hidden")  # of ConvNet, in the order of plans


def groups(weight: np.ndarray, m: int) -> np.ndarray:
    """``[G, M]``, a copy: M consecutive inputs of one output and kernel position."""
    return np.moveaxis(weight, 1, -1).reshape(-1, m).copy()


def ungroup(rows: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return np.moveaxis(rows.reshape(shape[0], *shape[2:], shape[1]), -1, 1)


def largest(weight: np.ndarray, n: int, m: int) -> np.ndarray:
    """The N largest magnitudes of every group: bool."""
    rows = groups(weight, m)
    kept = np.zeros(rows.shape, bool)
    for row, chosen in zip(rows, kept, strict=True):
        chosen[sorted(range(m), key=lambda j: -abs(row[j]))[:n]] = True
    return ungroup(kept, weight.shape)


class _Straight(torch.autograd.Function):
    """The weight in use forward; backward the gradient goes straight to the dense weight, and a pull with it."""

    @staticmethod
    def forward(ctx, dense: Tensor, used: Tensor, pull: Tensor) -> Tensor:
        ctx.save_for_backward(pull)
        return used.clone()

    @staticmethod
    def backward(ctx, grad: Tensor):
        return grad + ctx.saved_tensors[0], None, None


class Behind(nn.Module):
    """A layer that computes with ``used(dense weight)``, itself learning in the dense one.

    Args:
        used: of the dense weight (float64 array), the weight in use and what pulls on the dense one.
    """

    def __init__(self, layer: nn.Module, used: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]) -> None:
        super().__init__()
        self.layer, self.used = layer, used

    def in_use(self) -> Tensor:
        return torch.tensor(self.used(self.layer.weight.detach().numpy())[0])

    def forward(self, x: Tensor) -> Tensor:
        used, pull = self.used(self.layer.weight.detach().numpy())
        return call(self.layer, x, _Straight.apply(self.layer.weight, torch.tensor(used), torch.tensor(pull)))


class OwnSteps:
    """An optimizer that steps the dense weight of each :class:`Behind` by a formula of its own.

    Args:
        rest: makes the optimizer of all other parameters.
        steps: by the name of the layer, the new weight from the weight and its gradient; float64 arrays.
    """

    def __init__(
        self,
        model: nn.Module,
        rest: Callable[[nn.Module], torch.optim.Optimizer],
        steps: Mapping[str, Callable[[np.ndarray, np.ndarray], np.ndarray]],
    ) -> None:
        self.sparse = {name: getattr(model, name).layer.weight for name in steps}
        self.rest, self.steps = rest(model), steps

    def zero_grad(self) -> None:
        self.rest.zero_grad()

    def step(self) -> None:
        gradients = {name: weight.grad.numpy() for name, weight in self.sparse.items()}
        for weight in self.sparse.values():
            weight.grad = None  # so that the optimizer of the rest passes it by
        self.rest.step()
        for name, weight in self.sparse.items():
            weight.data.copy_(torch.from_numpy(self.steps[name](weight.detach().numpy(), gradients[name])))


def call(layer: nn.Module, x: Tensor, weight: Tensor) -> Tensor:
    if isinstance(layer, nn.Linear):
        return F.linear(x, weight, layer.bias)
    return layer._conv_forward(x, weight, layer.bias)


def beside(
    method: nm.Method,
    build: Callable[[nn.Module, str, nm.Sparsifier], nn.Module],
    steps: int = 16,
    optimizer: Callable[[nn.Module], torch.optim.Optimizer] = sgd,
) -> Iterator[tuple[int, nm.Sparsifier, nn.Module, nn.Module]]:
    """Train the library's form and a reference step by step, comparing losses; yields after every step.

    Args:
        build: (layer, its name, the sparsifier) -> the layer of the reference, for every sparse layer.

    Yields:
        steps done, the sparsifier, its model, the reference.
    """
    ours = convnet().double()
    theirs = copy.deepcopy(ours)
    ours_optimizer = optimizer(ours)
    sparsifier = nm.Sparsifier(ours, method).attach(ours_optimizer, steps)
    assert [row.name for row in sparsifier.plan.sparse] == [f"{name}.weight" for name in LAYERS]
    for name in LAYERS:
        setattr(theirs, name, build(getattr(theirs, name), name, sparsifier))
    theirs_optimizer = optimizer(theirs)
    yield 0, sparsifier, ours, theirs
    for step, (x, y) in enumerate(batches(steps, dtype=torch.float64), start=1):
        losses = []
        for model, chosen in ((ours, ours_optimizer), (theirs, theirs_optimizer)):
            chosen.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            losses.append(loss.item())
        ours_optimizer.step()
        theirs_optimizer.step()
        assert abs(losses[0] - losses[1]) < 1e-10, step
        yield step, sparsifier, ours, theirs


def check_shadow(sparsifier: nm.Sparsifier, model: nn.Module, reference: nn.Module) -> None:
    """The weights in use and the dense ones behind them, to 1e-10."""
    for w, name in zip(sparsifier._weights, LAYERS, strict=True):
        layer = getattr(reference, name)
        torch.testing.assert_close(w.state["dense"], layer.layer.weight.detach(), rtol=0, atol=1e-10)
        torch.testing.assert_close(getattr(model, name).weight.detach(), layer.in_use(), rtol=0, atol=1e-10)


def bimask(pattern: str = "2:4", **options: float) -> nm.BiMask:
    """With few permutations."""
    return nm.BiMask(pattern, **{"candidates": 5, "draws": 4} | options)


def attached(
    model: nn.Module, method: nm.Method | None = None, rules: dict | None = None, steps: int = 16
) -> tuple[torch.optim.Optimizer, nm.Sparsifier]:
    """A model under a method, Bi-Mask if none is given."""
    optimizer = sgd(model)
    return optimizer, nm.Sparsifier(model, method or bimask(), rules).attach(optimizer, steps)


def one_linear(dtype: torch.dtype = torch.float32) -> tuple[nn.Linear, torch.optim.Optimizer, nm.Sparsifier]:
    """A linear layer of 16 inputs and 8 outputs under Bi-Mask."""
    layer = nn.Linear(16, 8, bias=False, dtype=dtype)
    return layer, *attached(layer, rules={"*": "2:4"})


def back(sparsifier: nm.Sparsifier, name: str = "weight") -> Tensor:
    """What the input gradient is computed with."""
    w = next(w for w in sparsifier._weights if w.name == name)
    return sparsifier.method.used_back(w.seen(), sparsifier._attached.at())
