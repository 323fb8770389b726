"""Watching a model's calls: what it was given, and what the modules inside it gave.

The hooks are plain enough for torch.compile to trace: they break no graph, and what they keep becomes an output of it.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from nmlearn.errors import AttachError
from nmlearn.learn.hooks import Hook

NEVER = "it was not called since attach"
_BROKEN_OFF = "its last call ended with an error"
_USED = "its last call has given its loss already"
_IN_EVALUATION = "its last call was in evaluation mode"
_WITHOUT_GRADIENTS = "its last call was without gradients"


@dataclass
class Call:
    """One call of a model, or none yet.

    Attributes:
        missing: why there is no call to look at; empty once there is one.
        args, kwargs: what its forward was given.
        output: what it gave.
        outputs: of the modules inside, by name; of several calls of one, the last.
        calls: of all these modules.
        autocast: the kind of device, whether autocast was on for it when the first layer ran, and its type.
    """

    missing: str = NEVER
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    output: Any = None
    outputs: dict[str, Any] = field(default_factory=dict)
    calls: int = 0
    autocast: tuple[str, bool, torch.dtype] = ("cpu", False, torch.bfloat16)


class Watch:
    """Keeps the last call of a model that trains: in training mode and with gradients. Others pass unseen.

    Attributes:
        last: the call that came to its end last.
        device_type: whose autocast to look at.
    """

    def __init__(self, device_type: str) -> None:
        self.last, self.device_type = Call(), device_type
        self._now: Call | None = None  # the call that is on; layers that a backward pass calls again are in none
        self._over = False

    def hang(self, model: nn.Module, modules: Mapping[str, nn.Module]) -> list[Any]:
        """Hang hooks on a model and some modules inside it; returns the handles."""
        hung = [model.register_forward_pre_hook(Hook(self._begin), with_kwargs=True)]
        # Frameworks turn autocast on inside of the model's forward, where a hook on the model does not see it.
        first = next((m for m in model.modules() if next(m.parameters(recurse=False), None) is not None), model)
        hung.append(first.register_forward_pre_hook(Hook(self._note_autocast)))
        hung += [module.register_forward_hook(Hook(self._keeper(name))) for name, module in modules.items()]
        return [*hung, model.register_forward_hook(Hook(self._end), with_kwargs=True)]

    def end(self) -> None:
        """Keep nothing any more: compiled code goes on to call hooks that were removed."""
        self._over, self._now, self.last = True, None, Call()

    def take(self) -> Call:
        """The last call; afterwards there is none until the next."""
        taken = self.last
        if not taken.missing:
            self.last = Call(_USED)
        return taken

    def _begin(self, model: nn.Module, *_: Any) -> None:
        if self._over:
            return
        if getattr(model, "_is_replica", False):
            _refuse_replicas()
        if model.training and torch.is_grad_enabled():
            self.last = self._now = Call(_BROKEN_OFF)
            self._note_autocast()
        elif self.last.missing:
            self.last.missing = _WITHOUT_GRADIENTS if model.training else _IN_EVALUATION

    def _note_autocast(self, *_: Any) -> None:
        if self._now is not None:
            kind = self.device_type
            self._now.autocast = (kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))

    def _keeper(self, name: str) -> Any:
        def keep(module: nn.Module, args: Any, output: Any) -> None:
            if self._now is not None:
                self._now.outputs[name] = output
                self._now.calls += 1

        return keep

    def _end(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if self._now is not None:  # else a call around the one that was watched
            self._now.args, self._now.kwargs, self._now.output = args, kwargs, output
            self._now.missing, self._now = "", None


def argument(module: nn.Module, call: Call, name: str) -> Any:
    """An argument of a call by its name in the module's forward; None where it was not given."""
    if name in call.kwargs:
        return call.kwargs[name]
    return dict(zip(inspect.signature(module.forward).parameters, call.args, strict=False)).get(name)


def _refuse_replicas() -> None:
    raise AttachError(
        where="Distillation",
        given="a model in DataParallel",
        wrong="its replicas compute in threads, and each sees a part of the batch",
        fix="train with DistributedDataParallel",
    )
