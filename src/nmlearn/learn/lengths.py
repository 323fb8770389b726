"""The length of a training run in optimizer steps, from a number or from who knows it."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

from nmlearn.errors import AttachError


def steps(given: object) -> int:
    """The number of steps of a training run.

    Args:
        given: any number that equals a whole one; a Trainer of Lightning, or a Trainer, TrainerState or
            TrainingArguments of transformers; or a function without arguments that returns one of these.

    Raises:
        AttachError: no number, not finite, not whole, or below 1; or one of these objects that does not know it yet.
    """
    known = _asked(given)
    number = float(known) if isinstance(known, Real) and not isinstance(known, bool) else math.nan
    if number.is_integer() and number >= 1:
        return int(number)
    raise AttachError(
        where="attach",
        given=f"total_steps={given!r}" + ("" if known is given else f", which says {known!r}"),
        wrong="progress is measured in optimizer steps: a whole number, of at least one",
        fix="give epochs * batches // accumulation",
    )


def _asked(given: Any) -> object:
    """The number that an object knows: found by what it has, since none of their libraries is imported here."""
    if isinstance(given, Real):
        return given
    if hasattr(given, "estimated_stepping_batches"):  # Lightning's Trainer
        return given.estimated_stepping_batches
    if hasattr(given, "get_train_dataloader") and hasattr(given, "args"):  # the Trainer of transformers
        return _of_trainer(given)
    if isinstance(getattr(given, "max_steps", None), int):  # its state and its arguments
        return given.max_steps
    return _asked(given()) if callable(given) else given


def _of_trainer(trainer: Any) -> object:
    """Its ``max_steps``, or what it computes from epochs, batches and accumulation when it begins to train."""
    for place in (trainer.state, trainer.args):
        if place.max_steps > 0:
            return place.max_steps
    batches = len(trainer.get_train_dataloader())
    updates = max(1, -(-batches // trainer.args.gradient_accumulation_steps))
    return math.ceil(trainer.args.num_train_epochs * updates)
