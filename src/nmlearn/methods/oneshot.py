"""One-shot magnitude, then fine-tuning under the fixed mask: ASP's recipe.

Mishra et al., *Accelerating Sparse Deep Neural Networks*, arXiv 2104.08378, section 4: the N largest magnitudes of each
group are kept, the mask is fixed, and training continues.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from nmlearn.errors import ScheduleError
from nmlearn.maths.pattern import Pattern
from nmlearn.methods.method import Method, Setting, State, Weight, keep_top_


@dataclass(frozen=True)
class OneShot(Method):
    """One-shot magnitude pruning and fine-tuning (ASP).

    Attributes:
        at: progress at which the mask is computed. 0, the default, computes it at attach: for a pretrained model. From
            scratch 0.5 trains dense for the first half.

    Raises:
        ScheduleError: ``at`` is not in [0, 1].
    """

    at: float = 0.0

    name: ClassVar[str] = "oneshot"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.at <= 1.0:
            raise ScheduleError(
                where="oneshot.at",
                given=self.at,
                wrong="progress lies in [0, 1]",
                fix="write 0 to mask a pretrained model at once, 0.5 to train dense for the first half",
            )

    def setting(self, pattern: Pattern, progress: float) -> int:
        return int(progress >= self.at)

    def init(self, w: Weight) -> State:
        state = super().init(w)
        if self.at == 0.0:
            keep_top_(replace(w, state=state), w.tensor.abs(), w.pattern.n)
        return state

    def advance(self, w: Weight, setting: Setting) -> bool:
        if not setting or self.at == 0.0:
            return False
        keep_top_(w, w.tensor.abs(), w.pattern.n)
        return True
