"""What sparsity costs and saves in training: FLOPs of the sparse layers relative to dense, and the extra state.

A layer's step is three matrix products of equal dense cost: the forward, the gradient of its input, the gradient of
its weight. With density d the first two cost d; so does the third, unless the method also needs the gradient of pruned
weights. Weighted by dense FLOPs and averaged over the steps: (d + d + (1 or d)) / 3. This counts arithmetic, not
seconds: whether hardware makes it faster is a separate question.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nmlearn.learn.sparsifier import Sparsifier


class Accounting:
    """Counts over a training run; call ``count`` before every optimizer step.

    Args:
        sparsifier: an attached one.
        dense_flops: of each sparse weight, for one product, in any unit; see ``nmlearn.model.products``.

    Attributes:
        state_bytes: the peak size so far of what the sparsifier holds in addition to the model.
    """

    def __init__(self, sparsifier: Sparsifier, dense_flops: Mapping[str, float]) -> None:
        self._sparsifier = sparsifier
        self._flops = dense_flops
        self._seen = -1
        self._ratio = 1.0
        self._sum = 0.0
        self._steps = 0
        self.state_bytes = 0

    def count(self) -> None:
        """Count one step. Densities are read only after the schedule moved: reading synchronises a GPU."""
        if self._sparsifier.advances != self._seen:
            self._seen = self._sparsifier.advances
            self._ratio = self._ratio_now()
            self.state_bytes = max(self.state_bytes, self._sparsifier.state_bytes())
        self._sum += self._ratio
        self._steps += 1

    @property
    def training_flops_ratio(self) -> float:
        """FLOPs of the sparse layers so far, relative to dense."""
        return self._sum / self._steps if self._steps else 1.0

    def state_dict(self) -> dict[str, Any]:
        """The counts, for a checkpoint."""
        return {"sum": self._sum, "steps": self._steps, "state_bytes": self.state_bytes}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint's counts."""
        self._sum, self._steps, self.state_bytes = state["sum"], state["steps"], state["state_bytes"]

    def _ratio_now(self) -> float:
        densities = {status.name: status.density for status in self._sparsifier.status()}
        total = sum(self._flops[name] for name in densities)
        if total == 0:
            return 1.0
        dense_gradient = type(self._sparsifier.method).dense_gradient
        return (
            sum(self._flops[name] * (2 * d + (1 if dense_gradient else d)) / 3 for name, d in densities.items()) / total
        )
