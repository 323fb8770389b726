"""Wanda: magnitude times the norm of the input.

Sun et al., *A Simple and Effective Pruning Approach for Large Language Models*, ICLR 2024, arXiv 2306.11695,
equation 1: the weights of each group with the largest ``|w| |x|`` are kept, as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from nmlearn.maths.importance import top_of_groups, wanda
from nmlearn.maths.inputs import Inputs
from nmlearn.methods.calibrated import Calibrated
from nmlearn.methods.method import Weight


@dataclass(frozen=True)
class Wanda(Calibrated):
    """One-shot by magnitude times the norm of the input; for calibration data."""

    name: ClassVar[str] = "wanda"

    def solve(self, w: Weight, rows_gok: Tensor, inputs: Inputs) -> tuple[Tensor, Tensor | None]:
        return top_of_groups(wanda(rows_gok, inputs.norm_gk), w.pattern), None
