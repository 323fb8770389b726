"""Distillation: a teacher's hidden states and logits as a part of the loss of a model that trains.

Only hooks are hung on the model, which keep what its last call was given and gave. The teacher is no part of the model:
neither its ``state_dict`` nor its parameters know of it.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any, Literal, NoReturn, Self

import torch
from torch import Tensor, nn

from nmlearn.errors import AttachError, ConfigError, NMLearnError, StateError
from nmlearn.learn import counterparts, teaching
from nmlearn.learn.comparing import Pair, Weights
from nmlearn.learn.teaching import Given
from nmlearn.learn.twin import Twin
from nmlearn.learn.watching import Call, Watch
from nmlearn.model import example
from nmlearn.model.names import unwrap


class Distillation:
    """Adds what a teacher knows to the loss of a model that trains.

        distillation = nm.Distillation("copy", hidden={"encoder.layer.*": 1.0})
        distillation.attach(model)                           # before a sparsifier changes its weights
        sparsifier.attach(optimizer, total_steps)
        ...
        loss = task_loss(model(inputs)) + distillation.loss()  # after each forward call that is trained with

    ``loss()`` runs the teacher on what the model's last call in training mode was given, and returns

        sum over globs: weight * mean over its modules: MSE(h, h_teacher) / variance(h_teacher)
        + logits * temperature^2 * mean over tokens: KL(teacher || student), both softened by the temperature

    in float32. With an argument ``attention_mask`` ``[B, T]`` in the call, tokens where it is 0 are left out of outputs
    ``[B, T, ..., K]`` and ``[B T, K]``. The teacher runs in evaluation mode, without gradients, under the autocast of
    the student's call and on its device, where it is moved to. Its labels are left out: arguments by the names of
    transformers, such as ``labels``. Wrappers (DDP, torch.compile) are looked through.

    Args:
        teacher: the network to learn from; or "copy" for the model as it is at ``attach``, whose frozen parameters are
            shared and not copied. For ``hidden`` alone it may lack the head: a module of the student is compared with
            the teacher's of the same name, where the first parts of either's names may differ, in the same way for
            all: ``bert.encoder.layer.0`` and ``encoder.layer.0``.
        hidden: glob on the names of modules -> weight. Their outputs are compared: a tensor, or the first one in a
            tuple or mapping. A glob matches a whole name or what is behind any dot in it, and takes the outermost
            modules that match; the last glob wins. A module that is called several times counts with its last call.
        logits: weight of the logits: the model's output, its ``logits``, or the first tensor of a tuple with two or
            more dimensions; the last dimension runs over classes.
        temperature: of the logits.

    Attributes:
        weights: of the terms, and the temperature.
        last: the last loss, without gradient; None before the first.

    Raises:
        ConfigError: nothing to compare, or a weight or temperature that is no such number.
    """

    def __init__(
        self,
        teacher: nn.Module | Literal["copy"],
        *,
        hidden: Mapping[str, float] | None = None,
        logits: float = 0.0,
        temperature: float = 2.0,
    ) -> None:
        if not (isinstance(teacher, nn.Module) or teacher == "copy"):
            fix = 'give a module, or "copy" for the model as it is at attach'
            _refuse(ConfigError, f"teacher={example.said(teacher)}", "it is no network", fix)
        self.weights = Weights({} if hidden is None else hidden, logits, temperature)
        self.last: Tensor | None = None
        self._teacher: Given | Twin | None = Given(teacher) if isinstance(teacher, nn.Module) else None
        self._model: nn.Module | None = None

    def __repr__(self) -> str:
        of = type(unwrap(self._teacher.model)).__name__ if isinstance(self._teacher, Given) else "a copy"
        stands = "not attached" if self._model is None else f"attached to {type(self._model).__name__}"
        return f"Distillation(from {of}, {self.weights}, {stands})"

    @property
    def teacher(self) -> nn.Module | None:
        """The network that is learned from; None for a copy that is not made yet."""
        return None if self._teacher is None else self._teacher.model

    # Attaching

    def check(self, model: nn.Module) -> None:
        """Refuse a model, or a teacher for it, whose modules do not fit; ``attach`` does it too.

        Raises:
            ConfigError: a glob matches no module, the teacher lacks modules, or it shares weights that learn.
        """
        chosen = counterparts.chosen(model, self.weights.hidden)
        if isinstance(self._teacher, Given):
            counterparts.counterparts([name for names in chosen.values() for name in names], self._teacher.model)
            counterparts.check_apart(model, self._teacher.model)

    def attach(self, model: nn.Module) -> Self:
        """Watch a model's calls from now on; with "copy", it is the teacher as it is now.

        Args:
            model: the one whose forward is called; wrapped or not, now or later. A compiled one must not have been
                called before. Not in DataParallel, which is refused when it is called.

        Raises:
            AttachError: this is attached already, or the model cannot be copied; for "copy", a sparsifier acts on it.
            ConfigError: as for :meth:`check`.
        """
        if self._model is not None:
            fix = "call remove() first, or make one for each model"
            _refuse(AttachError, "attach", "it is attached already", fix)
        self.check(model)
        if not isinstance(self._teacher, Given):
            self._teacher = Twin(model)
        self._model, found = unwrap(model), counterparts.modules(model)
        chosen = counterparts.chosen(model, self.weights.hidden).items()
        self._chosen = {glob: names for glob, names in chosen if names and self.weights.hidden[glob]}
        names = [name for some in self._chosen.values() for name in some]
        self._counterparts = counterparts.counterparts(names, self._teacher.model)
        self._modules = {name: found[name] for name in names}
        self._watch = Watch(_device(self._model).type)
        self._hooks = weakref.finalize(self, _end, self._watch, self._watch.hang(self._model, self._modules))
        self._hooks.atexit = False
        return self

    def remove(self) -> None:
        """Remove the hooks from the model; they also go with this object. A second call does nothing."""
        if self._model is not None:
            self._hooks()
            self._model = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    # Computing

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def loss(self) -> Tensor:
        """The loss of the model's last call in training mode; each call gives it once.

        Returns:
            a scalar, float32 (float64 for a model of that), on the model's device. Zero without running the teacher if
            all weights are zero.

        Raises:
            StateError: there is no such call, or this is not attached or runs without gradients.
            ConfigError: the teacher does not take the arguments, or something to compare is missing, has another
                shape than the teacher's, or has no gradient.
        """
        call = self._taken()
        assert self._model is not None and self._teacher is not None
        device = self._follow(self._model, self._teacher.model)
        terms: list[Tensor] = []
        if self._modules or self.weights.logits:
            self._teacher.ready(self._model)
            taught = teaching.run(self._teacher.model, self._counterparts, call, whole=self.weights.logits > 0)
            terms = self._terms(Pair(self._model, call, taught))
        total = sum(terms[1:], terms[0]) if terms else torch.zeros((), device=device)
        if terms and not total.requires_grad:
            fix = "compare outputs that the weights which learn have a part in"
            _refuse(ConfigError, "loss()", "nothing that is compared depends on a weight that learns", fix)
        self.last = total.detach()
        return total

    def _terms(self, pair: Pair) -> list[Tensor]:
        terms = []
        for glob, names in self._chosen.items():
            errors = [pair.hidden(name, self._modules[name]) for name in names]
            terms.append(self.weights.hidden[glob] * torch.stack(errors).mean())
        if self.weights.logits:
            terms.append(self.weights.logits * pair.logits(self.weights.temperature))
        return terms

    def _taken(self) -> Call:
        if self._model is None:
            _refuse(StateError, "loss()", "it is not attached to a model", "call attach(model) first")
        if not torch.is_grad_enabled():
            _refuse(StateError, "loss() without gradients", "it could teach nothing", "call it only while training")
        call = self._watch.take()
        if call.missing:
            fix = "call the model itself, training and with gradients; attach before a compiled model's first call"
            _refuse(StateError, f"loss() of {type(self._model).__name__}", call.missing, fix)
        return call

    def _follow(self, model: nn.Module, teacher: nn.Module) -> torch.device:
        """Bring the teacher to the student's device, unless that has several; returns the first."""
        devices, device = {p.device for p in model.parameters()}, _device(model)
        if len(devices) == 1 and {p.device for p in teacher.parameters()} - devices:
            teacher.to(device)
        self._watch.device_type = device.type
        return device

    # Saving and resuming

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint: what is compared, and the teacher: the tensors of a copy without those that the model
        shares, or the SHA-256 of a given one, by which it is known again.

        Raises:
            StateError: this is not attached.
        """
        if self._model is None:
            _refuse(StateError, "state_dict()", "it is not attached to a model", "call attach(model) first")
        assert self._teacher is not None
        return self.weights.state_dict() | self._teacher.state_dict(self._model)

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from a saved state: a copy becomes the one that was saved; anything else must be as it was.

        Raises:
            StateError: it was saved with another teacher, other weights or another temperature, or this is not
                attached; nothing has changed.
        """
        if self._model is None:
            _refuse(StateError, "load_state_dict()", "it is not attached to a model", "call attach(model) first")
        assert self._teacher is not None
        self.weights.check_same(saved)
        self._teacher.load_state_dict(self._model, saved)


def _refuse(kind: type[NMLearnError], given: str, wrong: str, fix: str) -> NoReturn:
    raise kind(where="Distillation", given=given, wrong=wrong, fix=fix)


def _end(watch: Watch, hooks: list[Any]) -> None:
    watch.end()
    for hook in hooks:
        hook.remove()


def _device(model: nn.Module) -> torch.device:
    return next((p.device for p in model.parameters()), torch.device("cpu"))
