"""DSnoT: exchanges in a mask until the mean output of each row is that of the dense one.

Zhang et al., *Dynamic Sparse No Training: Training-Free Fine-tuning for Sparse LLMs*, ICLR 2024, arXiv 2310.08915. From
a mask of another method, each cycle grows the pruned weight that best reduces the row's mean error, over the variance
of its input, and prunes the weight of the same group with the lowest Wanda score (:mod:`nmlearn.maths.exchange`).
Values stay. The gains are at high sparsity without a pattern; at 2:4 others found it no better than its start.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from nmlearn.maths.exchange import exchange
from nmlearn.maths.importance import live, top_of_groups, wanda
from nmlearn.maths.inputs import Inputs
from nmlearn.methods.calibrated import Calibrated
from nmlearn.methods.method import Weight
from nmlearn.methods.options import check_not_negative


@dataclass(frozen=True)
class DSnoT(Calibrated):
    """Dynamic sparse no training: exchanges in a mask by the mean error of each row; for calibration data.

    Attributes:
        start: the mask to start from, "wanda" or "magnitude".
        cycles: exchanges in a row, at most 50.
        threshold: a row is left alone when its mean error is below it, 0.1, in units of the output.
        power: of the variance that the gain of a weight is divided by; 1, and 0 leaves the variance out.

    Raises:
        ConfigError: another start, or a negative number.
    """

    start: Literal["wanda", "magnitude"] = "wanda"
    cycles: int = 50
    threshold: float = 0.1
    power: float = 1.0

    name: ClassVar[str] = "dsnot"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_not_negative(self, "cycles", "threshold", "power")

    def solve(self, w: Weight, rows_gok: Tensor, inputs: Inputs) -> tuple[Tensor, Tensor | None]:
        by_wanda = wanda(rows_gok, inputs.norm_gk)
        keep = top_of_groups(by_wanda if self.start == "wanda" else rows_gok.abs(), w.pattern)
        effect = rows_gok * inputs.mean_gk[:, None]
        gain = effect / live(inputs.variance_gk).pow(self.power)[:, None]
        grow = (gain, torch.zeros_like(gain))
        found = exchange(keep, effect, grow, by_wanda, w.pattern, cycles=self.cycles, threshold=self.threshold)
        return found, None
