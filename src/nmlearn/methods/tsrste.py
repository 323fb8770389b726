"""T-SR-STE: SR-STE with transposable masks, which are solved now and then.

Hu et al., *Accelerating Transformer Pre-training with 2:4 Sparsity*, ICML 2024, arXiv 2404.01847, with the masks of
Hubara et al., *Accelerated Sparse Neural Training*, NeurIPS 2021, arXiv 2102.08124
(:mod:`nmlearn.maths.transposable`). The mask is N:M along the inputs and along the outputs, so that the products
of the forward pass and of the input gradient are N:M sparse with one weight. It is solved for the magnitudes of the
dense weight; the authors do so every 40 steps. In between W <- W - lr (g + decay (1 - m) W), as in SR-STE.

What differs: masks are solved a number of times along the training, and not every so many steps. The authors sample
the gradient of a layer's outputs to 2:4 (MVUE) for the product that gives the weight gradient; what a method sees here
is that weight gradient itself, which is the mean of theirs. They train densely in the last sixth; here the
result has its pattern. They take the feed-forward layers alone: give rules for that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from nmlearn.maths import masks, transposable
from nmlearn.maths.pattern import Pattern
from nmlearn.methods.method import At, Method, Setting, State, Weight, decay_pruned_, top_magnitudes
from nmlearn.methods.options import check_count, check_not_negative


@dataclass(frozen=True)
class TSRSTE(Method):
    """SR-STE with transposable masks: N:M along the outputs too, where M divides their number.

    Attributes:
        decay: the pull on pruned weights; 6e-5 to 2e-4 in the paper.
        refreshes: how many masks follow one another in a training run; the paper has one every 40 steps.

    Raises:
        ConfigError: a negative decay, no mask or more than a million.
    """

    decay: float = 2e-4
    refreshes: int = 250

    name: ClassVar[str] = "tsrste"
    holds: ClassVar[Literal["shadow"]] = "shadow"
    dense_gradient: ClassVar[bool] = True
    whole: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_not_negative(self, "decay")
        check_count(self, "refreshes", "masks are solved for")

    def init(self, w: Weight) -> State:
        return {masks.KEEP: masks.full_bits(w.tensor).copy_(masks.bits(_solved(w)))}

    def setting(self, pattern: Pattern, progress: float) -> int:
        """The number of the mask; the last one stays to the end."""
        return min(int(progress * self.refreshes), self.refreshes - 1)

    def settled(self, pattern: Pattern, setting: Setting | None) -> bool:
        return True  # every mask has the pattern

    def advance(self, w: Weight, setting: Setting) -> bool:
        if not setting:  # that is the one of the start
            return False
        w.state[masks.KEEP].copy_(masks.bits(_solved(w)))
        return True

    def learn(self, weights: Sequence[Weight], at: At) -> None:
        decay_pruned_(weights, self.decay)

    def used(self, w: Weight, at: At) -> Tensor:
        return masks.kept(w.tensor, self.mask(w))


def _solved(w: Weight) -> Tensor:
    """The mask for the dense weight as it is now: bool, of its shape."""
    if w.tensor.shape[w.grouping.output_axes()[-1]] % w.pattern.m:
        return top_magnitudes(w)
    magnitudes = transposable.tiles(masks.finite_first(w.tensor.abs()), w.grouping)
    return transposable.untiled(transposable.best(magnitudes, w.pattern), w.grouping)
