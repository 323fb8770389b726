"""A sparsifier's state in its optimizer's ``state_dict``, for training scripts that save and restore only optimizers.

    sparsifier.attach(optimizer, total_steps)
    carry(sparsifier, optimizer)              # timm's CheckpointSaver and resume_checkpoint now include it

timm itself needs nothing else, and is not imported; see docs/timm.md.
"""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer

from nmlearn.errors import StateError
from nmlearn.learn.optimizers import innermost
from nmlearn.learn.sparsifier import Sparsifier

KEY = "nmlearn"


def carry(sparsifier: Sparsifier, optimizer: Optimizer) -> None:
    """Let ``optimizer.state_dict()`` include the sparsifier's state, and ``load_state_dict`` restore it.

    Once the sparsifier is finalized or detached, both cover only the optimizer again.

    Args:
        sparsifier: attached to the optimizer. Load the model's weights before the optimizer's state.
        optimizer: wrappers are looked through.

    Raises:
        StateError: later, from ``load_state_dict``, if the state has no sparsifier's state, or another's.
    """
    key = f"{KEY}:{sparsifier.plan.sparse[0].name}"  # several on one optimizer have different weights
    held: list[dict[str, Any]] = []

    def save(_: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        return state | {key: sparsifier.state_dict()} if sparsifier.total_steps else state

    def hold(_: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        if not sparsifier.total_steps:
            return state
        if key not in state:
            raise StateError(
                where="optimizer.load_state_dict",
                given=f"a state with {', '.join(state)}",
                wrong="it has no state of a sparsifier, so the masks and their schedule would start over",
                fix="load only the weights to start learning from them",
            )
        held[:] = [state[key]]
        return {name: value for name, value in state.items() if name != key}

    def load(_: Optimizer) -> None:
        for state in held:
            sparsifier.load_state_dict(state)
        held.clear()

    inner = innermost(optimizer)
    inner.register_state_dict_post_hook(save)
    inner.register_load_state_dict_pre_hook(hold)
    inner.register_load_state_dict_post_hook(load)
