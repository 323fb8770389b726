"""ALPS: the support by operator splitting, the values by least squares.

Meng et al., *ALPS: Improved Optimization for Highly Sparse One-Shot Pruning for Large Language Models*, NeurIPS 2024,
arXiv 2406.07831: ADMM (:mod:`nmlearn.maths.splitting`) until the support has come to rest, then conjugate gradients.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from torch import Tensor

from nmlearn.maths.inputs import Inputs
from nmlearn.maths.splitting import split
from nmlearn.methods.calibrated import Calibrated
from nmlearn.methods.method import Needs, Weight
from nmlearn.methods.options import refuse


@dataclass(frozen=True)
class ALPS(Calibrated):
    """One-shot by ADMM on the outputs of the layer, then least squares on the support; for calibration data.

    Attributes:
        damping: added to the products of inputs of norm 1; 0.01.
        rho: the penalty at the start, 0.1; it grows by 1.1 to 1.3, the faster the more the support still changes.
        rounds: of ADMM, at most 300; it ends when the support has come to rest.

    Raises:
        ConfigError: a damping or penalty that is not positive, or no round.
    """

    refit: Literal["none", "pcg"] = field(default="pcg", kw_only=True)
    damping: float = 0.01
    rho: float = 0.1
    rounds: int = 300

    name: ClassVar[str] = "alps"
    sees: ClassVar[Needs] = "gram"

    def __post_init__(self) -> None:
        super().__post_init__()
        for option in ("damping", "rho", "rounds"):
            if not getattr(self, option) > 0:
                refuse(option, getattr(self, option), "it has to be positive", "leave it out")

    def solve(self, w: Weight, rows_gok: Tensor, inputs: Inputs) -> tuple[Tensor, Tensor | None]:
        assert inputs.gram_gkk is not None
        return split(rows_gok, inputs.gram_gkk, w.pattern, self.damping, self.rho, self.rounds)
