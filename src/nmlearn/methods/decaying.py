"""Decaying masks: what is pruned fades (MdGf), or the pattern becomes sparser in stages (SdGf).

Kao et al., *Training Recipe for N:M Structured Sparsity with Decaying Pruning Mask*, arXiv 2209.07617; Bambhaniya et
al., *Progressive Gradient Flow for Robust N:M Sparsity Training in Transformers*, arXiv 2402.04744. The mask m of
largest magnitudes is found at every step.

MdGf computes with W (m + (1 - m) b), where b falls from 1 to 0: linearly, or as exp(-c t). SdGf computes with W m and
changes the pattern of m: stepwise M-1:M, M/2:M, M/4:M ... N:M; or geometrically kN:kM with k = 8, 4, 2, 1.

What differs: b and the stages follow progress and not steps, so that a length of training needs no other setting; and
the exponential, which never comes to 0, is cut off at ``end``. The authors' code passes the gradient straight through
the mask. Their abstracts speak of restricting it, which is the derivative: ``gradient="product"``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from nmlearn.maths import masks
from nmlearn.maths.pattern import LARGEST_M, Pattern
from nmlearn.maths.schedules import along
from nmlearn.methods.method import At, Method, Setting, Weight, grads, top_magnitudes
from nmlearn.methods.options import check_span, refuse

_FRAMES = (8, 4, 2, 1)


@dataclass(frozen=True)
class MdGf(Method):
    """Mask decay: pruned weights are multiplied by a number that falls from 1 to 0.

    Attributes:
        start, end: between these shares of training it falls.
        fall: "exponential" or "linear".
        rate: of the exponential: it has come to exp(-rate) when it is cut off.
        gradient: "straight" through the mask; or "product", the derivative, which fades for pruned weights too.

    Raises:
        ScheduleError: not 0 <= start <= end <= 1.
        ConfigError: a rate that is not above 0.
    """

    start: float = 0.0
    end: float = 0.5
    fall: Literal["exponential", "linear"] = "exponential"
    rate: float = 5.0
    gradient: Literal["straight", "product"] = "straight"

    name: ClassVar[str] = "mdgf"
    holds: ClassVar[Literal["shadow"]] = "shadow"
    dense_gradient: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_span(self)
        if not self.rate > 0:
            refuse("rate", self.rate, "the mask would not fall", "write 5")

    def setting(self, pattern: Pattern, progress: float) -> float:
        """What pruned weights are multiplied by at this progress."""
        done = along(progress, self.start, self.end)
        if done >= 1.0:
            return 0.0
        return 1.0 - done if self.fall == "linear" else math.exp(-self.rate * done)

    def advance(self, w: Weight, setting: Setting) -> bool:
        return setting == 0.0

    def learn(self, weights: Sequence[Weight], at: At) -> None:
        if self.gradient == "product":
            for grad, w in zip(grads(weights), weights, strict=True):
                grad.copy_(self._faded(grad, w, at))

    def used(self, w: Weight, at: At) -> Tensor:
        return self._faded(w.tensor, w, at)

    def mask(self, w: Weight) -> Tensor:
        left = self.setting(w.pattern, 0.0) if w.setting is None else w.setting
        return torch.ones_like(w.tensor, dtype=torch.bool) if left else top_magnitudes(w)

    def _faded(self, x_w: Tensor, w: Weight, at: At) -> Tensor:
        left = self.setting(w.pattern, at.progress)
        kept_w = top_magnitudes(w)
        return torch.where(kept_w, x_w, left * x_w) if left else masks.kept(x_w, kept_w)


@dataclass(frozen=True)
class SdGf(Method):
    """Structure decay: the pattern becomes sparser in stages until it is N:M.

    Attributes:
        start, end: when the first stage begins, and the last one, N:M; those before it take the same time each.
        stages: "stepwise" M-1:M, M/2:M, M/4:M ...; "geometric" 8N:8M, 4N:4M, 2N:2M, without frames of more than 64;
            where one does not divide the inputs of a layer, the next begins earlier.

    Raises:
        ScheduleError: not 0 <= start <= end <= 1.
    """

    start: float = 0.0
    end: float = 0.5
    stages: Literal["stepwise", "geometric"] = "stepwise"

    name: ClassVar[str] = "sdgf"
    holds: ClassVar[Literal["shadow"]] = "shadow"
    dense_gradient: ClassVar[bool] = True
    whole: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_span(self)

    def setting(self, pattern: Pattern, progress: float) -> int:
        """The number of the stage: 0 is dense."""
        if progress < self.start:
            return 0
        before_last = len(self._patterns(pattern)) - 1
        # Float noise must not hold a stage back: 0.9999999999999999 of a stage is meant to be 1.
        return 1 + int(along(progress, self.start, self.end) * before_last + 1e-9)

    def advance(self, w: Weight, setting: Setting) -> bool:
        return True

    def used(self, w: Weight, at: At) -> Tensor:
        return masks.kept(w.tensor, self._mask(w, self.setting(w.pattern, at.progress)))

    def mask(self, w: Weight) -> Tensor:
        return self._mask(w, w.setting if isinstance(w.setting, int) else self.setting(w.pattern, 0.0))

    def _mask(self, w: Weight, stage: int) -> Tensor:
        if not stage:
            return torch.ones_like(w.tensor, dtype=torch.bool)
        inputs = w.tensor.shape[w.grouping.axis]
        patterns = self._patterns(w.pattern)[stage - 1 :]
        fits = next(pattern for pattern in patterns if inputs % pattern.m == 0)
        return top_magnitudes(replace(w, grouping=replace(w.grouping, pattern=fits)))

    def _patterns(self, pattern: Pattern) -> list[Pattern]:
        """Of the stages, the last one its own."""
        n, m = pattern.n, pattern.m
        if self.stages == "geometric":
            return [Pattern(k * n, k * m) for k in _FRAMES if k * m <= LARGEST_M]
        kept = [m - 1, *(m >> halving for halving in range(1, m.bit_length()))]
        return [Pattern(k, m) for k in sorted({k for k in kept if k > n}, reverse=True)] + [pattern]
