"""SR-STE: the magnitude mask is taken anew at every step, removed weights are pulled towards zero.

Zhou et al., *Learning N:M Fine-grained Structured Sparse Neural Networks From Scratch*, ICLR 2021, arXiv 2102.04010,
equation 9: W <- W - lr (g + decay (1 - m) W), where g is the gradient at the masked weight and reaches all weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from nmlearn.maths import masks
from nmlearn.maths.groups import Grouping
from nmlearn.methods.method import Batch, Method, State


@dataclass(frozen=True)
class SRSTE(Method):
    """Sparse-refined straight-through estimator.

    Attributes:
        decay: the pull on removed weights, the paper's lambda_w; 2e-4 in the paper, 0 is the plain straight-through
            estimator.
    """

    decay: float = 2e-4

    name: ClassVar[str] = "srste"
    keeps_dense: ClassVar[bool] = True
    dense_gradient: ClassVar[bool] = True

    def init(self, name: str, weight: Tensor, grouping: Grouping) -> State:
        return {"dense": weight.clone(), "keep": masks.full_bits(weight)}

    def learn(self, batch: Batch, lr: float) -> None:
        # The weight in use is m W, so (1 - m) W = W - weight: no mask is needed.
        torch._foreach_add_(batch.grads, [state["dense"] for state in batch.states], alpha=self.decay)
        torch._foreach_sub_(batch.grads, batch.weights, alpha=self.decay)

    def use(self, batch: Batch) -> None:
        for weight, state, grouping in zip(batch.weights, batch.states, batch.groupings, strict=True):
            chosen = masks.top(masks.finite_first(grouping.view(state["dense"]).abs()), grouping.pattern.n)
            grouping.view(state["keep"]).copy_(masks.bits(chosen))
            masks.clear_(weight, state["keep"])
