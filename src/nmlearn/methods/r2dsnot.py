"""R2-DSnoT: DSnoT with relative importance and a regularized decision.

Yi and Richtarik, *Symmetric Pruning of Large Language Models*, arXiv 2501.18980. To DSnoT it adds relative importance,
``|w| / row sum + |w| / column sum``, in growing or in pruning, and an l_p term of the weight with its own factor in
each of the two decisions.

Assumed here, where no formula was at hand: relative importance stands in place of ``|w|`` in the score that prunes, or
multiplies the gain of growing; the term is ``factor |w|^p``, added to either score, so that large weights are grown
first and pruned last; and the default factors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from nmlearn.maths.exchange import exchange
from nmlearn.maths.importance import live, relative, ria, top_of_groups, wanda
from nmlearn.maths.inputs import Inputs
from nmlearn.methods.calibrated import Calibrated
from nmlearn.methods.method import Weight
from nmlearn.methods.options import check_not_negative


@dataclass(frozen=True)
class R2DSnoT(Calibrated):
    """DSnoT with relative importance and a regularized decision; for calibration data.

    Attributes:
        start: the mask to start from, "ria", "wanda" or "magnitude".
        relative: where relative importance decides, "prune" or "grow".
        grow_penalty, prune_penalty: factors of the terms ``|w|^norm``, 0 and 0.0001.
        norm: their power, 2.
        cycles, threshold, power: as of :class:`nmlearn.DSnoT`.

    Raises:
        ConfigError: another word, or a negative number.
    """

    start: Literal["ria", "wanda", "magnitude"] = "wanda"
    relative: Literal["prune", "grow"] = "prune"
    grow_penalty: float = 0.0
    prune_penalty: float = 1e-4
    norm: float = 2.0
    cycles: int = 50
    threshold: float = 0.1
    power: float = 1.0

    name: ClassVar[str] = "r2dsnot"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_not_negative(self, "grow_penalty", "prune_penalty", "norm", "cycles", "threshold", "power")

    def solve(self, w: Weight, rows_gok: Tensor, inputs: Inputs) -> tuple[Tensor, Tensor | None]:
        size, norm_gk = rows_gok.abs(), inputs.norm_gk
        scores = {"wanda": wanda(rows_gok, norm_gk), "magnitude": size, "ria": ria(rows_gok, norm_gk, 0.5)}
        keep = top_of_groups(scores[self.start], w.pattern)
        effect = rows_gok * inputs.mean_gk[:, None]
        gain = effect / live(inputs.variance_gk).pow(self.power)[:, None]
        loss = scores["wanda"]
        if self.relative == "grow":
            gain = gain * relative(rows_gok)
        else:
            loss = relative(rows_gok) * live(norm_gk)[:, None]
        term = size.pow(self.norm)
        grow, prune = (gain, self.grow_penalty * term), loss + self.prune_penalty * term
        found = exchange(keep, effect, grow, prune, w.pattern, cycles=self.cycles, threshold=self.threshold)
        return found, None
