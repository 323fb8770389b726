"""A copy of a model as it is at some moment, which shares what does not learn."""

from __future__ import annotations

import copy
import types
import warnings
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from nmlearn.errors import AttachError, StateError
from nmlearn.learn.living import held_elsewhere
from nmlearn.model.names import unwrap
from nmlearn.model.shards import is_sharded


class Twin:
    """The copy. Frozen parameters, those with ``requires_grad=False``, are the model's own until they learn.

    Hooks on the model itself that change its arguments are left out: the copy is given what forward was given.

    Args:
        model: wrappers are looked through.

    Attributes:
        model: the copy.

    Raises:
        AttachError: it cannot be copied, or a sparsifier acts on it already.
    """

    def __init__(self, model: nn.Module) -> None:
        model = unwrap(model)
        _check(model)
        frozen = {id(p): p for p in model.parameters() if not p.requires_grad}
        try:
            self.model: nn.Module = copy.deepcopy(model, dict(frozen))
        except Exception as error:  # of whatever a module holds
            _refuse(f"{type(error).__name__}: {error}", "attach before its first call, or give the teacher")
        self.model._forward_pre_hooks.clear()
        self.model._forward_pre_hooks_with_kwargs.clear()
        for p in self.model.parameters():
            p.requires_grad_(False)
        self._untested = True

    def ready(self, model: nn.Module) -> None:
        """Before it is run: what has begun to learn is copied, which before its first step is what it was."""
        self._own({name for name, p in self._shared(model).items() if p.requires_grad})
        if self._untested and (name := self._sparse()):
            warnings.warn(
                f'Distillation("copy") has copied a model with many zeros, such as in {name}: if it was made sparse '
                "before attach, the dense network is the better teacher",
                stacklevel=4,
            )
        self._untested = False

    def _shared(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """Its parameters, by name, that are the model's own."""
        own = {id(p) for p in unwrap(model).parameters()}
        return {name: p for name, p in self.model.named_parameters(remove_duplicate=False) if id(p) in own}

    def _sparse(self) -> str:
        """The name of a weight that looks as if a sparsifier had been there; empty where there is none."""
        for name, p in self.model.named_parameters():
            zeros = p.numel() - int(p.count_nonzero()) if p.dim() > 1 else 0
            if p.numel() / 5 < zeros < p.numel():
                return name
        return ""

    def state_dict(self, model: nn.Module) -> dict[str, Any]:
        """Under "copy" the tensors that it does not share, by name."""
        shared, state = self._shared(model), self.model.state_dict()
        own = {name: value for name, value in state.items() if name not in shared and isinstance(value, Tensor)}
        return {"copy": own}

    @torch.no_grad()
    def load_state_dict(self, model: nn.Module, saved: Mapping[str, Any]) -> None:
        """Become the copy that was saved.

        Raises:
            StateError: it is of another model, or other parameters were frozen; nothing has changed.
        """
        tensors, state, shared = saved.get("copy"), self.model.state_dict(), self._shared(model)
        if not isinstance(tensors, Mapping):
            _refuse_state("copy", "there are no tensors of a copy in it")
        for name, value in state.items():
            if isinstance(value, Tensor) and name not in shared and name not in tensors:
                _refuse_state(name, "it was frozen when this was saved, or belongs to another model")
        for name, value in tensors.items():
            if not isinstance(value, Tensor) or value.is_meta or _form(value) != _form(state.get(name)):
                _refuse_state(str(name), "the model has no such tensor, or one of another shape or type")
        self._own(shared.keys() & tensors.keys())
        state = self.model.state_dict()
        for name, value in tensors.items():
            state[name].copy_(value)
        self._untested = False

    def _own(self, names: Iterable[str]) -> None:
        """Copy shared parameters."""
        copies: dict[int, nn.Parameter] = {}
        for name in names:
            module, _, own = name.rpartition(".")
            p = self.model.get_parameter(name)
            if id(p) not in copies:
                copies[id(p)] = nn.Parameter(p.detach().clone(), requires_grad=False)
            setattr(self.model.get_submodule(module), own, copies[id(p)])


def _form(value: object) -> object:
    return (value.shape, value.dtype, value.layout) if isinstance(value, Tensor) else None


def _check(model: nn.Module) -> None:
    if held_elsewhere({id(p) for p in model.parameters()}):
        _refuse("a sparsifier acts on it already", "attach the distillation before the sparsifier")
    if any(is_sharded(p) for p in model.parameters()):
        _refuse("its weights are sharded", "attach before they are, or give the teacher")
    for name, module in model.named_modules():
        own = vars(module).get("forward")
        if isinstance(own, types.FunctionType) and own.__closure__:
            wrong = f"the forward of {name or 'the model'} was replaced, and that of a copy may compute with the model"
            _refuse(wrong, "attach before it is, or give the teacher")


def _refuse(wrong: str, fix: str) -> NoReturn:
    raise AttachError(where='Distillation("copy")', given="the model", wrong=wrong, fix=fix)


def _refuse_state(name: str, wrong: str) -> NoReturn:
    fix = "resume with the model, the frozen parameters and the teacher of the run that saved it"
    raise StateError(where=name, given="a saved copy of the model", wrong=wrong, fix=fix)
