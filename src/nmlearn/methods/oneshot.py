"""One-shot magnitude, then fine-tuning under the fixed mask: ASP's recipe.

Mishra et al., *Accelerating Sparse Deep Neural Networks*, arXiv 2104.08378, section 4: the N largest magnitudes of each
group are kept, the mask is fixed, and training continues.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from nmlearn.errors import ScheduleError
from nmlearn.maths.importance import top_of_groups
from nmlearn.maths.inputs import Inputs
from nmlearn.maths.pattern import Pattern
from nmlearn.methods.calibrated import Calibrated
from nmlearn.methods.method import Method, Needs, Setting, State, Weight, keep_top_, wrong_counts
from nmlearn.methods.options import refuse


@dataclass(frozen=True)
class OneShot(Calibrated):
    """One-shot magnitude pruning and fine-tuning (ASP).

    It needs calibration data only to refit.

    Attributes:
        at: progress at which the mask is computed. 0, the default, computes it at attach: for a pretrained model. From
            scratch 0.5 trains dense for the first half.

    Raises:
        ScheduleError: ``at`` is not in [0, 1].
        ConfigError: a refit of a mask that is computed amid training.
    """

    at: float = 0.0

    name: ClassVar[str] = "oneshot"
    sees: ClassVar[Needs] = "nothing"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.at <= 1.0:
            raise ScheduleError(
                where="oneshot.at",
                given=self.at,
                wrong="progress lies in [0, 1]",
                fix="write 0 to mask a pretrained model at once, 0.5 to train dense for the first half",
            )

        if self.at and self.refit != "none":
            refuse(
                "refit", self.refit, "this mask is computed amid training, and a refit comes before it", "write at=0"
            )

    def setting(self, pattern: Pattern, progress: float) -> int:
        return int(progress >= self.at)

    def init(self, w: Weight) -> State:
        if self.refit != "none":
            return super().init(w)
        state = Method.init(self, w)
        if self.at == 0.0:
            keep_top_(replace(w, state=state), w.tensor.abs(), w.pattern.n)
        return state

    def impossible(self, w: Weight) -> str:
        if self.refit != "none":  # its mask may be that of zeros that it found
            return super().impossible(w)
        return wrong_counts(w, w.pattern.n if w.setting or self.at == 0.0 else w.pattern.m)

    def solve(self, w: Weight, rows_gok: Tensor, inputs: Inputs) -> tuple[Tensor, Tensor | None]:
        return top_of_groups(rows_gok.abs(), w.pattern), None

    def advance(self, w: Weight, setting: Setting) -> bool:
        if not setting or self.at == 0.0:
            return False
        keep_top_(w, w.tensor.abs(), w.pattern.n)
        return True
