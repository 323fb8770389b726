"""Bi-Mask: the input gradient is computed with a mask of its own, N:M along the outputs.

Zhang et al., *Bi-directional Masks for Efficient N:M Sparse Training*, ICML 2023, arXiv 2302.06058. Forward, the N
largest magnitudes of every group along the inputs are kept. For the input gradient the rows (outputs) of the masked
weight are permuted, the N largest of every M consecutive rows are kept in each column, and the rows are put back, so
that the transposed product is N:M sparse too. Now and then random permutations are drawn, and the one under which most
entries survive both masks is kept. The weight gradient is dense, and pruned weights decay as in SR-STE.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from nmlearn.maths import masks, noise
from nmlearn.maths.pattern import Pattern
from nmlearn.methods.method import At, Method, Setting, State, Weight, decay_pruned_, top_magnitudes
from nmlearn.methods.options import check_not_negative, refuse

# All candidates are drawn at once: more would not fit.
MOST = 1_000_000


@dataclass(frozen=True)
class BiMask(Method):
    """Bi-directional masks: forward as SR-STE, the input gradient by a weight that is N:M along the outputs too.

    It hangs hooks on the layers while it learns, and is refused under torch.compile, whose backward pass is compiled
    with the weight in use.

    Attributes:
        decay: the pull on pruned weights, 2e-4.
        candidates: how many permutations are drawn each time, 100.
        draws: how often in a training run, and once behind the first step; the paper draws every 100 steps.
        seed: of the permutations.

    Raises:
        ConfigError: no candidate, a number below 0, or more than a million candidates or draws.
    """

    decay: float = 2e-4
    candidates: int = 100
    draws: int = 100
    seed: int = 0

    name: ClassVar[str] = "bimask"
    holds: ClassVar[Literal["shadow"]] = "shadow"
    dense_gradient: ClassVar[bool] = True
    other_backward: ClassVar[bool] = True
    whole: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_not_negative(self, "decay")
        if not 1 <= self.candidates <= MOST:
            wrong = f"a permutation is chosen of at least one, and at most {MOST:,}"
            refuse("candidates", self.candidates, wrong, "write 100")
        if not 0 <= self.draws <= MOST:
            wrong = f"permutations are drawn between never and {MOST:,} times"
            refuse("draws", self.draws, wrong, "write 100, or 0 for none")

    def init(self, w: Weight) -> State:
        return {"rows": torch.arange(w.tensor.shape[w.grouping.output_axes()[-1]], device="cpu")}

    def setting(self, pattern: Pattern, progress: float) -> int:
        return int(progress * self.draws)

    def settled(self, pattern: Pattern, setting: Setting | None) -> bool:
        return True  # permutations are drawn for the input gradient, and the weights in use have their pattern

    def advance(self, w: Weight, setting: Setting) -> bool:
        """Draw permutations again and keep the best; ranks that hold other rows choose for their own."""
        forward = self._by_rows(self._forward(w), w)
        rows = len(forward)
        if not self.draws or rows % w.pattern.m or not forward.numel():
            return False
        assert isinstance(setting, int)
        uniform = noise.uniform((self.candidates, rows), self.seed, setting, w.name)
        orders = uniform.argsort(-1)
        kept = [float((_columns(forward[order], w.pattern) & (forward[order] != 0)).sum()) for order in orders]
        w.state["rows"].copy_(orders[max(range(len(kept)), key=kept.__getitem__)])
        return False  # the forward mask has not changed

    def impossible(self, w: Weight) -> str:
        rows = w.state["rows"]
        whole = torch.equal(rows.sort().values, torch.arange(len(rows), dtype=rows.dtype, device=rows.device))
        return "" if whole else "its rows are not each of the outputs once, in some order"

    def learn(self, weights: Sequence[Weight], at: At) -> None:
        decay_pruned_(weights, self.decay)

    def used(self, w: Weight, at: At) -> Tensor:
        return self._forward(w)

    def used_back(self, w: Weight, at: At) -> Tensor:
        forward = self._forward(w)
        by_rows = self._by_rows(forward, w)
        if len(by_rows) % w.pattern.m:  # outputs that do not make groups: the input gradient is the ordinary one
            return forward
        order, axis = w.state["rows"].to(forward.device), w.grouping.output_axes()[-1]
        kept = torch.empty_like(by_rows, dtype=torch.bool)
        kept[order] = _columns(by_rows[order], w.pattern)
        return masks.kept(forward, kept.view(forward.movedim(axis, 0).shape).movedim(0, axis))

    def mask(self, w: Weight) -> Tensor:
        return top_magnitudes(w)

    def _forward(self, w: Weight) -> Tensor:
        return masks.kept(w.tensor, self.mask(w))

    def _by_rows(self, weight: Tensor, w: Weight) -> Tensor:
        """``[outputs, inputs x positions]``."""
        return weight.movedim(w.grouping.output_axes()[-1], 0).flatten(1)


def _columns(by_rows: Tensor, pattern: Pattern) -> Tensor:
    """The N largest magnitudes of every M consecutive rows, column by column; bool, of the same shape."""
    groups = by_rows.abs().unflatten(0, (-1, pattern.m)).movedim(1, -1)
    return masks.top(masks.finite_first(groups), pattern.n).movedim(-1, 1).flatten(0, 1)
