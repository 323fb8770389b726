"""Which layers a model begins and ends with, seen by running it once on an example.

A layer begins the model where a call of it is given the model's input, and nothing that another layer computed. It ends
the model where what a call of it computes reaches the model's output, and no other call of a layer is given it. Hooks
see the calls. A dispatch mode follows their results through all other operators, from storage to storage, until the
next call. A weight that is multiplied with outside its layer's call (in attention, in functional code) is a call too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from nmlearn.errors import ConfigError, NMLearnError
from nmlearn.model import example, layers
from nmlearn.model.found import Found
from nmlearn.model.names import unwrap
from nmlearn.model.shards import reshard

_aten = torch.ops.aten
_PRODUCTS = {_aten.mm, _aten.addmm, _aten.bmm, _aten.baddbmm, _aten.mv, _aten.addmv, _aten.linear, _aten.convolution}
_SHAPES_ONLY = re.compile(r"^aten\.(new_\w+|\w+_like)\.")  # what they make holds nothing of what they are given
_NOTHING: frozenset[int] = frozenset()
_INPUT = frozenset({-1})  # flows where calls do


@dataclass(frozen=True)
class Executed:
    """What a run of a model on an example showed, by the first names of weights.

    Attributes:
        first: those of the layers that begin the model.
        reached: those of the calls that reach the output through no other call; other calls may be given their results.
        last: those of the layers that end the model; None where no layer was seen to.
    """

    first: frozenset[str]
    reached: frozenset[str]
    last: frozenset[str] | None


def execute(model: nn.Module, found: Sequence[Found], inputs: Any) -> Executed:
    """Run a model once on an example, in evaluation mode and without gradients; it stays as it was.

    Args:
        model: wrappers are looked through, as for :func:`nmlearn.model.found.find`. With FSDP2 all ranks run it.
        found: its weights.
        inputs: a tensor, a tuple of arguments or a dict of keyword arguments, where the model is.

    Raises:
        ConfigError: the model's forward refuses the example.
    """
    inner = unwrap(model)
    call = example.caller(inner, inputs)
    if call is None:
        raise _refused(inner, inputs, f"it is a {type(inputs).__name__}")
    flows = _Flows(found, _tensors(inputs))
    try:
        with example.quiet(inner), _hooked(inner, found, flows), flows:
            output = call()
    except NMLearnError:
        raise
    except Exception as error:  # it is the forward of somebody else
        raise _refused(inner, inputs, f"the model's forward said: {type(error).__name__}: {error}") from error
    finally:
        reshard(inner)
    reached = flows.reaching(output)
    first, every, last = (_names(found, flows, calls) for calls in (flows.first, reached, reached - flows.fed))
    return Executed(first, every, last if reached - flows.fed else None)


def _names(found: Sequence[Found], flows: _Flows, calls: Iterable[int]) -> frozenset[str]:
    return frozenset(found[weight].names[0] for call in calls for weight in flows.calls[call])


def _refused(model: nn.Module, inputs: Any, wrong: str) -> ConfigError:
    fix = example.wanted(model, "a tensor, a tuple of arguments or a dict of keyword arguments")
    return ConfigError(where="example", given=example.said(inputs), wrong=wrong, fix=f"{fix}, on its device")


@contextmanager
def _hooked(model: nn.Module, found: Sequence[Found], flows: _Flows) -> Iterator[None]:
    """Tell of each call of a layer before and after it."""
    own: dict[nn.Module, frozenset[int]] = {}
    for number, item in enumerate(found):
        own |= {owner: own.get(owner, _NOTHING) | {number} for owner in item.owners}
    hooks = []
    try:
        for module in model.modules():
            if layers.is_known(module):
                before, after = _tellers(flows, own.get(module, _NOTHING))
                hooks.append(module.register_forward_pre_hook(before, with_kwargs=True))
                hooks.append(module.register_forward_hook(after, with_kwargs=True))
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _tellers(flows: _Flows, weights: frozenset[int]) -> tuple[Callable[..., None], Callable[..., None]]:
    def before(_: nn.Module, args: Any, kwargs: Any) -> None:
        flows.enter(_tensors(args, kwargs))

    def after(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        flows.leave(weights, _tensors(args, kwargs), _tensors(output))

    return before, after


class _Flows(TorchDispatchMode):
    """The calls whose results flowed into each storage, through no other call.

    What is chosen by a result, through whole numbers, and what is detached from it is no more learned through, but may
    be the model's answer: boxes that a detector proposes. That flow is kept apart and ends at no other call.

    Attributes:
        calls: the weights of each, by their places in what was found.
        first: the calls that were given the input, and no other's result.
        fed: the calls whose results others were given.
    """

    supports_higher_order_operators = True

    def __init__(self, found: Iterable[Found], inputs: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[frozenset[int]] = []
        self.first: set[int] = set()
        self.fed: set[int] = set()
        self._live: dict[Hashable, frozenset[int]] = {}
        self._ended: dict[Hashable, frozenset[int]] = {}
        self._detached: MutableMapping[Tensor, None] = WeakTensorKeyDictionary()
        self._weights: dict[Hashable, frozenset[int]] = {}
        for number, item in enumerate(found):
            key = _storage(item.parameter)
            # Of weights that lie in one storage none is known by it.
            self._weights[key] = _NOTHING if key in self._weights else frozenset({number})
        self._set(inputs, _INPUT, _NOTHING)

    def enter(self, given: Iterable[Tensor]) -> None:
        """Before a call."""
        self.fed |= self._of(given)[0]

    def leave(self, weights: frozenset[int], given: Iterable[Tensor], made: Iterable[Tensor]) -> None:
        """After a call: what it made is its own."""
        call = len(self.calls)
        self.calls.append(weights)
        live, ended = self._of(given)
        if live | ended == _INPUT:
            self.first.add(call)
        self._set(made, frozenset({call}), ended)

    def reaching(self, output: Any) -> frozenset[int]:
        """The calls that reach the model's output."""
        live, ended = self._of(_tensors(output))
        return (live | ended) - _INPUT

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        given = [] if _SHAPES_ONLY.search(str(func)) else _tensors(args, kwargs)
        made = _tensors(out, _written(func, args, kwargs))
        operator = getattr(func, "overloadpacket", None)
        each = [self._weights.get(_storage(tensor), _NOTHING) for tensor in given]
        weights = _NOTHING.union(*each)
        if weights and operator in _PRODUCTS and torch._C._current_autograd_node() is None:
            self.enter(given)
            self.leave(weights, given, made)
            return out
        if weights and all(each):  # computed from weights alone: another dtype, a norm
            self._weights |= {_storage(tensor): weights for tensor in made}
        self._note_detached(operator, given, made)
        self._set(made, *self._of(given))
        return out

    def _note_detached(self, operator: Any, given: list[Tensor], made: list[Tensor]) -> None:
        """A detached tensor shares the storage of the one that it comes from, and so do its views."""
        stores = {_storage(tensor) for tensor in given if operator is _aten.detach or tensor in self._detached}
        self._detached.update({tensor: None for tensor in made if _storage(tensor) in stores})

    def _of(self, given: Iterable[Tensor]) -> tuple[frozenset[int], frozenset[int]]:
        """The calls that flowed into tensors, and those whose flow has ended."""
        live, ended = _NOTHING, _NOTHING
        for tensor in given:
            key = _storage(tensor)
            flowed = self._live.get(key, _NOTHING)
            live, ended = (live, ended | flowed) if tensor in self._detached else (live | flowed, ended)
            ended |= self._ended.get(key, _NOTHING)
        return live, ended

    def _set(self, made: Iterable[Tensor], live: frozenset[int], ended: frozenset[int]) -> None:
        for tensor in made:
            key, learned = _storage(tensor), tensor.is_floating_point() or tensor.is_complex()
            if tensor not in self._detached:
                self._live[key] = live if learned else _NOTHING
                self._ended[key] = ended if learned else ended | live


def _storage(tensor: Tensor) -> Hashable:
    """A key that no other storage has while it is held, though it does not keep the memory; a tensor without storage
    has a new one each time: nothing is known of it."""
    try:
        return StorageWeakRef(tensor.untyped_storage())
    except (NotImplementedError, RuntimeError):
        return object()


def _written(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
    """The arguments that an operator writes to."""
    schema = getattr(func, "_schema", None)
    if schema is None or not schema.is_mutable:
        return []
    given = dict(zip((argument.name for argument in schema.arguments), args, strict=False)) | dict(kwargs)
    return [given.get(argument.name) for argument in schema.arguments if argument.is_write]


def _tensors(*values: Any) -> list[Tensor]:
    """All tensors in containers, dataclasses and other objects that hold some."""
    found, seen, rest = [], set(), list(values)
    while rest:
        value = rest.pop()
        if isinstance(value, Tensor):
            found.append(value)
        elif id(value) not in seen:
            seen.add(id(value))
            rest += _parts(value)
    return found


def _parts(value: Any) -> Iterable[Any]:
    if isinstance(value, Mapping):
        return value.values()
    if isinstance(value, list | tuple | set | frozenset):
        return value
    if isinstance(value, type | nn.Module) or callable(value):
        return ()
    if is_dataclass(value):
        return [getattr(value, field.name, None) for field in fields(value)]
    return vars(value).values() if hasattr(value, "__dict__") else ()
