"""State tensors that a torch optimizer steps: scores of combinations, logits.

Their gradient is a vector-Jacobian product: of ``Method.relaxed`` with the gradient of the weight in use. The
optimizer's own tensors are kept in the weight's state, as ``KEY.NAME``, so that a saved state is tensors only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn, optim

from nmlearn.learn.weight import SparseWeight
from nmlearn.methods.method import At, Method


class Learned:
    """The optimizer of what a method learns in the states of its weights."""

    def __init__(self, method: Method) -> None:
        self.method = method
        self._optimizer: optim.Optimizer | None = None
        self._leaves: dict[str, dict[str, nn.Parameter]] = {}

    @torch.no_grad()
    def bind(self, weights: Sequence[SparseWeight]) -> None:
        """Make the optimizer over the tensors that states hold now: at attach, after a load, and when masks moved."""
        self._leaves = {
            w.name: {key: nn.Parameter(w.state[key]) for key in self.method.learned(w.state)} for w in weights
        }
        every = [leaf for leaves in self._leaves.values() for leaf in leaves.values()]
        self._optimizer = self.method.optimizer(every, 0.0) if every else None
        for w in weights:
            for key, leaf in self._leaves[w.name].items():
                self._bind(leaf, key, w)

    def _bind(self, leaf: nn.Parameter, key: str, w: SparseWeight) -> None:
        assert self._optimizer is not None
        found = {name.removeprefix(f"{key}."): t for name, t in w.state.items() if name.startswith(f"{key}.")}
        if not found:
            found = self._fresh(leaf)
            w.state.update({f"{key}.{name}": tensor for name, tensor in found.items()})
        self._optimizer.state[leaf] = found

    def _fresh(self, leaf: nn.Parameter) -> dict[str, Tensor]:
        """The tensors that the optimizer starts with: those it makes in a first step, set to zero."""
        twin = nn.Parameter(leaf.detach().clone())
        twin.grad = torch.zeros_like(twin)
        optimizer = self.method.optimizer([twin], 0.0)
        optimizer.step()
        return {name: torch.zeros_like(t) for name, t in optimizer.state[twin].items() if isinstance(t, Tensor)}

    def step(self, weights: Sequence[SparseWeight], at: At) -> None:
        """One step on what the given weights have; the others stay as they are."""
        learning = [w for w in weights if self._leaves.get(w.name)]
        if self._optimizer is None or not learning:
            return
        for w in learning:
            self._differentiate(w, at)
        for group in self._optimizer.param_groups:
            group["lr"] = self.method.learning_rate(at)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def _differentiate(self, w: SparseWeight, at: At) -> None:
        leaves, seen = self._leaves[w.name], w.seen()
        with torch.enable_grad():
            used = self.method.relaxed(replace(seen, state={**w.state, **leaves}), at)
        assert seen.grad is not None
        grads = torch.autograd.grad(used, list(leaves.values()), seen.grad.to(used.dtype))
        for leaf, grad in zip(leaves.values(), grads, strict=True):
            leaf.grad = grad
