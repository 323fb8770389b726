"""What a student and its teacher made of the same call, term by term."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from torch import Tensor, nn

from nmlearn.errors import ConfigError, StateError, check_type
from nmlearn.learn.collecting import token_mask
from nmlearn.learn.states import equal
from nmlearn.learn.watching import Call, argument
from nmlearn.maths.distances import divergence, relative_error


@dataclass(frozen=True)
class Weights:
    """The weights of the terms of a distillation, and the temperature of its logits; see there.

    Raises:
        ConfigError: there is nothing to compare, or a number is not positive and finite; a weight may be 0.
    """

    hidden: Mapping[str, float]
    logits: float
    temperature: float

    def __post_init__(self) -> None:
        if not isinstance(self.hidden, Mapping):
            fix = 'write {"encoder.layer.*": 1.0}: glob -> weight'
            _refuse("Distillation(hidden)", repr(self.hidden), "it is no mapping", fix)
        for name, value in self._numbers().items():
            check_type(f"Distillation({name})", value, "float")
            least = 0.0 if name != "temperature" else sys.float_info.min
            if value < least:
                wrong = "it is not positive" if least else "it is negative"
                _refuse(f"Distillation({name})", str(value), wrong, "give another number")
        if not self.hidden and not self.logits:
            fix = 'give hidden, such as {"encoder.layer.*": 1.0}, or logits, such as 1.0, or both'
            _refuse("Distillation", "neither hidden nor logits", "there is nothing to compare", fix)

    def _numbers(self) -> dict[str, float]:
        hidden = {f"hidden[{glob!r}]": weight for glob, weight in self.hidden.items()}
        return {**hidden, "logits": self.logits, "temperature": self.temperature}

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"weights": [[name, value] for name, value in self._numbers().items()]}

    def check_same(self, saved: Mapping[str, Any]) -> None:
        """Refuse a state that was saved with others.

        Raises:
            StateError: always then.
        """
        now, were = self.state_dict()["weights"], saved.get("weights")
        if not equal(were, now):
            wrong, fix = f"it was saved with {were!r:.200}", "resume with the weights that it was saved with"
            raise StateError(where="Distillation", given=str(now), wrong=wrong, fix=fix)


@dataclass(frozen=True)
class Pair:
    """Two calls with the same arguments.

    Attributes:
        model: the student.
        call, taught: the student's call and the teacher's.
    """

    model: nn.Module
    call: Call
    taught: Call

    def hidden(self, name: str, module: nn.Module) -> Tensor:
        """The error of a module's output, relative to the variance of the teacher's.

        Raises:
            ConfigError: either was not called, or their outputs do not compare.
        """
        ours, theirs = (_first(each.outputs.get(name)) for each in (self.call, self.taught))
        if ours is None:
            fix = "name modules that every forward calls; attach before a compiled model's first call"
            _refuse(name, "no output", "the model's last call did not call it, or it gave no tensor", fix)
        if theirs is None:
            _refuse(name, "no output of the teacher's", "it was not called, or it gave no tensor", "choose others")
        if not ours.requires_grad and any(p.requires_grad for p in module.parameters()):
            fix = "checkpoint with use_reentrant=False (gradient_checkpointing_kwargs in transformers)"
            _refuse(name, "an output without gradient", "it was computed without: reentrant checkpointing does so", fix)
        return relative_error(ours, *self._target(name, ours, theirs))

    def logits(self, temperature: float) -> Tensor:
        """The divergence of the student's logits from the teacher's.

        Raises:
            ConfigError: either has no logits, or they do not compare.
        """
        ours, theirs = (_logits(each.output) for each in (self.call, self.taught))
        if ours is None or theirs is None:
            whose = "model" if ours is None else "teacher"
            fix = "return a tensor, an object or mapping with logits, or a tuple with a tensor of classes"
            _refuse("logits", f"the output of the {whose}", "it has no logits", fix)
        target, keep = self._target("logits", ours, theirs)
        return divergence(ours, target, temperature, keep)

    def _target(self, name: str, ours: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor | None]:
        """The teacher's tensor next to the student's, and which tokens count."""
        if ours.shape != theirs.shape:
            fix = "compare outputs of one shape: a teacher of the same width, fed the same tokens"
            _refuse(name, f"{list(ours.shape)}", f"the teacher's has the shape {list(theirs.shape)}", fix)
        mask = argument(self.model, self.call, "attention_mask")
        return theirs.to(ours.device), token_mask(mask, ours) if isinstance(mask, Tensor) else None


def _first(output: Any) -> Tensor | None:
    """The first tensor of a module's output."""
    if isinstance(output, Mapping):
        output = tuple(output.values())
    if isinstance(output, tuple | list):
        return next((value for value in output if isinstance(value, Tensor)), None)
    return output if isinstance(output, Tensor) else None


def _logits(output: Any) -> Tensor | None:
    named = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if isinstance(named, Tensor) or isinstance(output, Tensor):
        return named if isinstance(named, Tensor) else output
    if isinstance(output, tuple | list):
        return next((value for value in output if isinstance(value, Tensor) and value.dim() > 1), None)
    return None


def _refuse(where: str, given: str, wrong: str, fix: str) -> NoReturn:
    raise ConfigError(where=where, given=given, wrong=wrong, fix=fix)
