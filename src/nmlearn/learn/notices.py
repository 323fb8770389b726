"""What a sparsifier notices while it learns, and says once: slips that are no errors, since a loop may mean them."""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Iterable

import torch
from torch import Tensor

from nmlearn.methods.method import Method
from nmlearn.model.plan import Plan
from nmlearn.model.shards import local

FEW_STEPS = 10  # a schedule that has ended before this many optimizer steps learned nothing to choose by
SKIPPED_IN_A_ROW = 20  # a scaler halves its scale at each: from 65536 to less than 1
TRAINED = 2.5  # times the spread between rows that equal draws have; those of initial weights were at most 1.5
_STEPS = "epochs * batches // accumulation"


class Notices:
    """Of one training run, from attach to its end."""

    def __init__(self, plan: Plan, method: Method) -> None:
        self.skipped = 0
        self._in_a_row = 0
        self._without = {row.name for row in plan.sparse if method.holds != "nothing"}
        self._frozen = [row for row in plan.rows if row.pattern is None and row.reason.startswith("frozen")]

    def scaler(self, skips: bool) -> None:
        """A scaler that lets the optimizer decide (fused ones) has skipped this step, or not."""
        self.skipped += skips
        self._in_a_row = self._in_a_row + 1 if skips else 0
        if self._in_a_row == SKIPPED_IN_A_ROW:
            _warn(
                f"a scaler has skipped {SKIPPED_IN_A_ROW} steps in a row, and skipped steps do not count: the schedule "
                "does not advance. Find out why gradients are not finite"
            )

    def with_gradient(self, names: Iterable[str]) -> None:
        """These weights had one in this step."""
        if self._without:
            self._without.difference_update(names)

    def resumed(self) -> None:
        """Earlier steps were not seen, so nothing can be said of all of them."""
        self._without = set()

    def unfrozen(self) -> None:
        """Say which weights learn by now that were left dense because they were frozen."""
        learning = [row.name for row in self._frozen if row.parameter.requires_grad]
        if learning:
            self._frozen = [row for row in self._frozen if not row.parameter.requires_grad]
            _warn(
                f"{_listed(learning)}: frozen when the sparsifier was made, so dense in its plan, and learning now. "
                "Make the sparsifier when the layers that shall be sparse are not frozen, or give a rule of None"
            )

    def at_the_end(self, steps: int) -> None:
        """Say what only the whole training run shows."""
        self.unfrozen()
        if steps and self._without:
            names = sorted(self._without)
            _warn(
                f"{_listed(names)}: no gradient in any of the {steps} steps that were seen, nothing learned of what "
                "to keep. Were they frozen, or is the loss computed without them? A rule of None leaves them dense"
            )


@torch.no_grad()
def warn_of_trained(method: Method, plan: Plan) -> None:
    """Warn when a method to which all weights are equal at the start is given weights that look trained."""
    if not method.begins_equal:
        return
    spreads = [_spread_of_rows(local(row.parameter)) for row in plan.sparse if not row.parameter.is_meta]
    if spreads and statistics.median(spreads) > TRAINED:
        _warn(
            f"the weights look trained, and to {method.name} all are worth the same at the start: large ones may go "
            'first: for a pretrained model give prior="magnitude" and end=0.2'
        )


def _spread_of_rows(weight: Tensor) -> float:
    """How much the deviations of rows differ, relative to what differs by chance between draws from one normal
    distribution: about 1, or less, where rows are drawn alike."""
    if weight.dim() < 2 or weight.shape[0] < 2 or not weight.numel():
        return 0.0
    rows = weight.float().flatten(1)
    deviations = rows.std(1)
    mean = float(deviations.mean())
    return float(deviations.std()) / mean * math.sqrt(2 * rows.shape[1]) if mean > 0 else 0.0


def warn_of_few_steps(method: Method, plan: Plan, total_steps: int) -> None:
    """Warn when a schedule that takes time will be over within a few optimizer steps."""

    def over(step: int) -> bool:
        return method.all_settled(patterns, min(1.0, step / total_steps))

    patterns = {row.grouping.pattern for row in plan.sparse}
    if over(0) or not over(FEW_STEPS - 1):
        return
    last = next(step for step in range(1, FEW_STEPS) if over(step))
    _warn(
        f"the masks are final after {last} optimizer steps of total_steps={total_steps}, too few to learn by: "
        f"total_steps is the number of optimizer steps of the whole training run: {_STEPS}"
    )


def _listed(names: Iterable[str]) -> str:
    first, *others = names
    return f"{first} and {len(others)} more" if others else first


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=5)  # the line that calls attach or finalize
