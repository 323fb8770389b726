"""How long a sparsifier acts on a model: while both it and its optimizer are there.

The optimizer's step hooks hold the sparsifier, so that it lives with the optimizer. Nothing else does: the hooks on
weights and layers end with the first of the two, and a sparsifier knows its optimizer only weakly.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from nmlearn.model import moving


class Bond:
    """Between a sparsifier that is attached and its optimizer.

    Args:
        held: the ids of the weights that are acted on.
        hooks: handles of all hooks, to be removed when the sparsifier or the optimizer is gone.
    """

    def __init__(self, sparsifier: Any, optimizer: Optimizer, held: Iterable[int], hooks: list[Any]) -> None:
        self._held = frozenset(held)
        self._sparsifier, self._optimizer = weakref.ref(sparsifier), weakref.ref(optimizer)
        self._ends = [weakref.finalize(each, _remove, hooks) for each in (sparsifier, optimizer)]
        for end in self._ends:
            end.atexit = False
        moving.watch(self)

    def end(self) -> None:
        """Remove the hooks; a second call does nothing."""
        for end in self._ends:
            end()

    def counted(self) -> int | None:
        """The most steps that the optimizer itself has counted for one of the weights; None where it counts none."""
        states: dict[Any, Any] = getattr(self._optimizer(), "state", {})
        steps = [int(of["step"]) for p, of in states.items() if id(p) in self._held and "step" in of]
        return max(steps, default=None)

    def moving(self) -> Mapping[str, Tensor]:
        """The weights, by name, whose masks may still change."""
        sparsifier = self._sparsifier()
        if not self.held() or sparsifier is None or sparsifier.ended:
            return {}
        return {row.name: row.parameter for row in sparsifier.plan.sparse}

    def held(self) -> frozenset[int]:
        """The ids of the weights that are still acted on."""
        return self._held if all(end.alive for end in self._ends) else frozenset()


def held_elsewhere(own: set[int]) -> set[int]:
    """Those of these ids of weights that a living sparsifier holds."""
    return moving.lasting(lambda: own & {weight for bond in moving.watched() for weight in bond.held()})


def _remove(hooks: list[Any]) -> None:
    for hook in hooks:
        hook.remove()
