"""RIA: relative importance and activations.

Zhang et al., *Plug-and-Play: An Efficient Post-training Pruning Method for Large Language Models*, ICLR 2024: kept are
the weights with the largest ``(|w| / row sum + |w| / column sum) |x|^power``. The paper then permutes channels; that is
not done here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from nmlearn.maths.importance import ria, top_of_groups
from nmlearn.maths.inputs import Inputs
from nmlearn.methods.calibrated import Calibrated
from nmlearn.methods.method import Weight
from nmlearn.methods.options import refuse


@dataclass(frozen=True)
class RIA(Calibrated):
    """One-shot by relative importance in row and column, times the norm of the input; for calibration data.

    Attributes:
        power: of the input's norm, 0.5 in the paper; 0 looks at weights alone.

    Raises:
        ConfigError: a negative power.
    """

    power: float = 0.5

    name: ClassVar[str] = "ria"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.power >= 0:
            refuse("power", self.power, "large inputs would count less than small ones", "write 0.5")

    def solve(self, w: Weight, rows_gok: Tensor, inputs: Inputs) -> tuple[Tensor, Tensor | None]:
        return top_of_groups(ria(rows_gok, inputs.norm_gk, self.power), w.pattern), None
