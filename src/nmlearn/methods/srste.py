"""SR-STE: the magnitude mask is computed again at every step, pruned weights are pulled towards zero.

Zhou et al., *Learning N:M Fine-grained Structured Sparse Neural Networks From Scratch*, ICLR 2021, arXiv 2102.04010,
equation 9: W <- W - lr (g + decay (1 - m) W), where g is the gradient at the masked weight and reaches all weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from nmlearn.maths import masks
from nmlearn.methods.method import At, Method, Weight, decay_pruned_, top_magnitudes
from nmlearn.methods.options import check_not_negative


@dataclass(frozen=True)
class SRSTE(Method):
    """Sparse-refined straight-through estimator: the magnitude mask of every step, pruned weights decay.

    Attributes:
        decay: the pull on pruned weights, the paper's lambda_w; 2e-4 in the paper, 0 is the plain straight-through
            estimator.

    Raises:
        ConfigError: a negative decay.
    """

    decay: float = 2e-4

    name: ClassVar[str] = "srste"
    holds: ClassVar[Literal["shadow"]] = "shadow"
    dense_gradient: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_not_negative(self, "decay")

    def learn(self, weights: Sequence[Weight], at: At) -> None:
        decay_pruned_(weights, self.decay)

    def used(self, w: Weight, at: At) -> Tensor:
        return masks.kept(w.tensor, self.mask(w))

    def mask(self, w: Weight) -> Tensor:
        return top_magnitudes(w)
