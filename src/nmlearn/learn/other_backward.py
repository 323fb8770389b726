"""Input gradients that are computed with another weight than the one in use.

Autograd saves the weight of a layer for its backward pass, where nothing but the input gradient needs it. While the
layer runs forward, hooks on saved tensors take note of it; the backward pass is then given what ``Method.used_back``
gives in its place. The weight itself never changes.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from nmlearn.errors import AttachError
from nmlearn.learn.hooks import Hook
from nmlearn.learn.weight import SparseWeight
from nmlearn.methods.method import At, Method
from nmlearn.model.names import unwrap
from nmlearn.model.shards import is_sharded, local

# What may stand between a weight and the copy that autocast makes of it: what moves no number to another place.
_SAME_STORAGE = {"ToCopyBackward0", "TBackward0", "TransposeBackward0", "ViewBackward0", "PermuteBackward0"}


@dataclass
class _Saved:
    """A saved tensor, and the weights that lie in its storage: one, but for the flat buffers of cuDNN."""

    tensor: Tensor
    version: int
    weights: list[SparseWeight]


class OtherBackward:
    """Gives other weights to the backward passes of a model's layers.

    Args:
        at: a method that gives the moment that the weights in use were written for; its object is held weakly.

    Raises:
        AttachError: while training: a compiled layer, or a weight that has a gradient although its layer was never
            called or computed with a copy that cannot be followed.
    """

    def __init__(self, model: nn.Module, method: Method, weights: Sequence[SparseWeight], at: Callable[[], At]) -> None:
        self.method, self.weights, self._at = method, list(weights), weakref.WeakMethod(at)
        self._followed: set[str] = set()
        self._owners: dict[nn.Module, list[SparseWeight]] = {}
        for w in self.weights:
            for owner in _owners(unwrap(model), w.parameter):
                self._owners.setdefault(owner, []).append(w)

    def hooks(self) -> list[Any]:
        """Hang the hooks."""
        hung: list[Any] = []
        for owner, some in self._owners.items():
            layer = _Layer(some, self._followed, self._other)
            hung.append(owner.register_forward_pre_hook(Hook(torch.compiler.disable(layer.enter))))
            leave = Hook(torch.compiler.disable(layer.leave))
            hung.append(owner.register_forward_hook(leave, with_kwargs=True, always_call=True))
        return hung

    def settle(self, weights: Sequence[SparseWeight]) -> None:
        """Before a step of these: every one with a gradient was followed."""
        for w in weights:
            grad = w.parameter.grad
            if grad is not None and w.name not in self._followed and bool(grad.any()):
                wrong = (
                    "its layer was never called, or computed with a copy, and its input gradient was the ordinary one"
                )
                fix = f"leave it dense with a rule, or use a method other than {self.method.name}"
                _refuse(w.name, "a weight with a gradient", wrong, fix)
        self._followed.difference_update(w.name for w in weights)

    @torch.no_grad()
    def _other(self, saved: _Saved) -> Tensor:
        """The saved tensor, with the other weights in place of those in use."""
        at = self._at()
        if at is None:  # the sparsifier is gone
            return saved.tensor
        now, tensor, storage = at(), saved.tensor, saved.tensor.untyped_storage().clone()

        def view(like: Tensor, offset: Any) -> Tensor:
            return tensor.new_empty(0).set_(storage, offset, like.shape, like.stride())

        for w in saved.weights:
            weight = local(w.parameter)
            copied = _storage(weight) != _storage(tensor)
            view(weight, 0 if copied else weight.storage_offset()).copy_(self.method.used_back(w.seen(), now))
        return view(tensor, tensor.storage_offset())


class _Layer:
    """What the hooks on one layer do, around its forward pass."""

    def __init__(self, weights: list[SparseWeight], followed: set[str], other: Callable[[_Saved], Tensor]) -> None:
        self._weights, self._followed, self._other = weights, followed, other
        self._open: list[saved_tensors_hooks] = []

    def enter(self, *_: Any) -> None:
        outer = torch._C._autograd._top_saved_tensors_default_hooks(False) or (None, None)
        self._open.append(saved_tensors_hooks(*self._around(*outer)))
        self._open[-1].__enter__()

    def _around(self, outer_pack: Any, outer_unpack: Any) -> tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]]:
        """Hooks that leave all other tensors to the hooks around them: those of activation checkpointing."""

        def pack(tensor: Tensor) -> Any:
            within = self._within(tensor)
            self._followed.update(w.name for w in within)
            if within or not outer_pack:
                return _Saved(tensor.detach(), tensor._version, within)
            return outer_pack(tensor)

        def unpack(saved: Any) -> Tensor:
            if not isinstance(saved, _Saved):
                found: Tensor = outer_unpack(saved)
                return found
            if saved.tensor._version != saved.version:  # autograd checks this only where there are no hooks
                raise RuntimeError(
                    "one of the variables needed for gradient computation has been modified by an inplace operation: "
                    f"{tuple(saved.tensor.shape)} is at version {saved.tensor._version}; expected {saved.version}"
                )
            return self._other(saved) if saved.weights else saved.tensor

        return pack, unpack

    def _within(self, tensor: Tensor) -> list[SparseWeight]:
        """The weights that a saved tensor holds, as a view or as the copy that autocast made."""
        if is_sharded(tensor) or tensor.layout != torch.strided:
            return []
        storage = _storage(tensor)
        within = [w for w in self._weights if _storage(local(w.parameter)) == storage]
        whole = tensor.untyped_storage().nbytes() // tensor.element_size()
        origin = None if within else _origin(tensor)
        return within or [w for w in self._weights if w.parameter is origin and whole == w.parameter.numel()]

    def leave(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if self._open:
            self._open.pop().__exit__()
        made = next((t.grad_fn for t in _tensors(output) if t.grad_fn is not None), None)
        if "CompiledFunction" in type(made).__name__:
            fix = "train without torch.compile, or with another method"
            wrong = "its backward pass is compiled with the weight in use"
            _refuse(self._weights[0].name, "a compiled layer", wrong, fix)
        if made is not None and not any(t.requires_grad for t in _tensors([args, kwargs])):
            self._followed.update(w.name for w in self._weights)  # no input gradient: the weight may not be saved


def _owners(model: nn.Module, parameter: nn.Parameter) -> Iterable[nn.Module]:
    """The modules whose forward uses a parameter."""
    parents = {id(child): module for module in model.modules() for child in module.children()}
    for module in model.modules():
        if any(own is parameter for own in module._parameters.values()):
            # The output projection of nn.MultiheadAttention is never called: attention reads its weight.
            within = isinstance(parents.get(id(module)), nn.MultiheadAttention)
            yield parents[id(module)] if within else module


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _origin(tensor: Tensor) -> Tensor | None:
    """The leaf that a tensor is a view or a cast of."""
    node: Any = tensor.grad_fn
    while type(node).__name__ in _SAME_STORAGE:
        node = node.next_functions[0][0]
    leaf: Tensor | None = getattr(node, "variable", None)
    return leaf


def _tensors(values: Any) -> Iterable[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, (tuple, list)):
        for part in values:
            yield from _tensors(part)
    elif isinstance(values, dict):
        yield from _tensors(list(values.values()))


def _refuse(where: str, given: str, wrong: str, fix: str) -> NoReturn:
    raise AttachError(where=where, given=given, wrong=wrong, fix=fix)
