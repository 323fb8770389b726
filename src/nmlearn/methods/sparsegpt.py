"""SparseGPT: optimal brain surgery, column by column.

Frantar and Alistarh, *SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot*, ICML 2023, arXiv
2301.00774: when a group is reached, the weights that cost least are pruned, and those to the right make up for each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from nmlearn.maths.inputs import Inputs
from nmlearn.maths.obs import DAMPING, inverse_factor, sweep
from nmlearn.methods.calibrated import Calibrated
from nmlearn.methods.method import Needs, Weight
from nmlearn.methods.options import refuse


@dataclass(frozen=True)
class SparseGPT(Calibrated):
    """One-shot from left to right; the weights not yet reached make up for the pruned ones; for calibration data.

    Attributes:
        damping: added to the diagonal of the products of inputs, as a share of its mean; 0.01 in the paper.

    Raises:
        ConfigError: damping outside [0, 1].
    """

    damping: float = DAMPING

    name: ClassVar[str] = "sparsegpt"
    sees: ClassVar[Needs] = "gram"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.damping <= 1:
            refuse("damping", self.damping, "it is a share of the mean diagonal", "write 0.01")

    def solve(self, w: Weight, rows_gok: Tensor, inputs: Inputs) -> tuple[Tensor, Tensor | None]:
        assert inputs.gram_gkk is not None
        return sweep(rows_gok, inverse_factor(inputs.gram_gkk, self.damping, w.name), w.pattern)
