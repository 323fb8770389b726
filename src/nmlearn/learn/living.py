"""How long a sparsifier acts on a model: while its optimizers are there.

The optimizers' step hooks hold what it is attached by, so that this lives with them. Nothing else does: the hooks on
weights and layers end with the first of them, and a sparsifier knows its optimizers only weakly.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from nmlearn.learn.optimizers import with_part
from nmlearn.model import moving


class Bond:
    """Between a sparsifier's attachment and its optimizers.

    Args:
        attachment: its ``plan`` and ``ended`` are read.
        held: the ids of the weights that are acted on.
        hooks: handles of all hooks, to be removed when the attachment or one of the optimizers is gone; more may be
            added.
    """

    def __init__(self, attachment: Any, optimizers: Sequence[Optimizer], held: Iterable[int], hooks: list[Any]) -> None:
        self._held, self.hooks = frozenset(held), hooks
        self._attachment, self._optimizers = weakref.ref(attachment), [weakref.ref(each) for each in optimizers]
        self._ends = [weakref.finalize(each, _remove, hooks) for each in (attachment, *optimizers)]
        for end in self._ends:
            end.atexit = False
        moving.watch(self)

    def end(self) -> None:
        """Remove the hooks; a second call does nothing."""
        for end in self._ends:
            end()

    def counted(self) -> int | None:
        """The most steps that an optimizer itself has counted for one of the weights; None where they count none."""
        alive = [optimizer for each in self._optimizers if (optimizer := each()) is not None]
        states = [each.state for optimizer in alive for each in with_part(optimizer)]
        steps = [int(of["step"]) for s in states for p, of in s.items() if id(p) in self._held and of and "step" in of]
        return max(steps, default=None)

    def moving(self) -> Mapping[str, Tensor]:
        """The weights, by name, whose masks may still change."""
        attachment = self._attachment()
        if not self.held() or attachment is None or attachment.ended:
            return {}
        return {row.name: row.parameter for row in attachment.plan.sparse}

    def held(self) -> frozenset[int]:
        """The ids of the weights that are still acted on."""
        return self._held if all(end.alive for end in self._ends) else frozenset()


def held_elsewhere(own: set[int]) -> set[int]:
    """Those of these ids of weights that a living sparsifier holds."""
    return moving.lasting(lambda: own & {weight for bond in moving.watched() for weight in bond.held()})


def _remove(hooks: list[Any]) -> None:
    for hook in hooks:
        hook.remove()
