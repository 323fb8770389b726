"""What packed layers check before their state is saved or loaded."""

from __future__ import annotations

from torch import nn

from nmlearn.errors import StateError


def not_recoverable(name: str, layer: nn.Module, wrong: str) -> StateError:
    """The error to raise where a layer does not know the weight that the dense layer had."""
    return StateError(
        where=name,
        given=f"a {type(layer).__name__}",
        wrong=f"the weight of the dense layer cannot be recovered: {wrong}",
        fix="save the model before accelerating it",
    )
