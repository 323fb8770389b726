"""Input gradients that are computed with another weight than the one in use.

While a layer's own backward pass runs, its weight holds what ``Method.used_back`` gives; the change goes past autograd,
which saved the weight by reference. A hook on the layer's output puts it there just before, a hook on the weight's
gradient takes it away just after: a layer computes both gradients in one go, and its weight's comes last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nmlearn.errors import AttachError
from nmlearn.learn.weight import SparseWeight
from nmlearn.methods.method import At, Method
from nmlearn.model.names import unwrap
from nmlearn.model.shards import local


class OtherBackward:
    """Exchanges the weights of a model around their layers' backward passes.

    Args:
        at: the moment that the weights in use were written for.

    Raises:
        AttachError: while training: a layer that runs forward within the backward pass (activation checkpointing), a
            compiled layer, or one whose weight has a gradient although it was never called.
    """

    def __init__(self, model: nn.Module, method: Method, weights: Sequence[SparseWeight], at: Callable[[], At]) -> None:
        self.method, self.weights, self._at = method, list(weights), at
        self._in_use: dict[str, Tensor] = {}
        self._exchanged: set[str] = set()
        self._owners = {w.name: list(_owners(unwrap(model), w.parameter)) for w in weights}

    def hooks(self) -> list[Any]:
        """Hang the hooks."""
        hung: list[Any] = []
        for w in self.weights:
            for owner in self._owners[w.name]:
                hung.append(owner.register_forward_pre_hook(self._before_forward(w)))
                hung.append(owner.register_forward_hook(self._after_forward(w)))
            hung.append(w.parameter.register_post_accumulate_grad_hook(lambda _, w=w: self._restore(w)))
        return hung

    def settle(self) -> None:
        """Before a step: every weight holds what is in use again, and was exchanged if it has a gradient."""
        for w in self.weights:
            self._restore(w)
            if w.parameter.grad is not None and w.name not in self._exchanged:
                fix = f"leave it dense with a rule, or use a method other than {self.method.name}"
                _refuse(w.name, "a weight with a gradient", "its layer was never called, so nothing was exchanged", fix)
        self._exchanged.clear()

    def _before_forward(self, w: SparseWeight) -> Any:
        def check(*_: Any) -> None:
            if torch._C._current_graph_task_id() != -1:
                wrong = "the layer runs forward within the backward pass, which would read the weight of the other"
                _refuse(w.name, "activation checkpointing", wrong, "train without it, or with another method")
            self._restore(w)

        return torch.compiler.disable(check)

    def _after_forward(self, w: SparseWeight) -> Any:
        def watch(module: nn.Module, args: Any, output: Any) -> None:
            first = next((t for t in _tensors(output) if t.grad_fn is not None), None)
            if first is None or first.grad_fn is None:
                return
            if "CompiledFunction" in type(first.grad_fn).__name__:
                fix = "train without torch.compile, or with another method"
                _refuse(w.name, "a compiled layer", "its backward pass is compiled with the weight in use", fix)
            first.grad_fn.register_prehook(lambda *_: self._exchange(w))

        return torch.compiler.disable(watch)

    @torch.no_grad()
    def _exchange(self, w: SparseWeight) -> None:
        if w.name not in self._in_use:
            weight = local(w.parameter)
            back = self.method.used_back(w.seen(), self._at())
            self._in_use[w.name] = weight.clone()
            weight.data.copy_(back)
        self._exchanged.add(w.name)

    @torch.no_grad()
    def _restore(self, w: SparseWeight) -> None:
        if (in_use := self._in_use.pop(w.name, None)) is not None:
            local(w.parameter).data.copy_(in_use)


def _owners(model: nn.Module, parameter: nn.Parameter) -> Iterable[nn.Module]:
    """The modules whose forward uses a parameter."""
    parents = {id(child): module for module in model.modules() for child in module.children()}
    for module in model.modules():
        if any(own is parameter for own in module._parameters.values()):
            # The output projection of nn.MultiheadAttention is never called: attention reads its weight.
            within = isinstance(parents.get(id(module)), nn.MultiheadAttention)
            yield parents[id(module)] if within else module


def _tensors(output: Any) -> Iterable[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, (tuple, list)):
        for part in output:
            yield from _tensors(part)
    elif isinstance(output, dict):
        yield from _tensors(list(output.values()))


def _refuse(where: str, given: str, wrong: str, fix: str) -> None:
    raise AttachError(where=where, given=given, wrong=wrong, fix=fix)
