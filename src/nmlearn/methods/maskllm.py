"""MaskLLM: the weights are frozen, a distribution over the combinations of every group is learned.

Fang et al., *MaskLLM: Learnable Semi-Structured Sparsity for Large Language Models*, NeurIPS 2024, arXiv 2409.17481.
Every group has a logit for each of its C(M, N) combinations. While learning, the weight in use is the dense one times a
soft mask, y T with y = softmax((kappa pi + g) / tau), T the table of combinations and g Gumbel noise; kappa rises and
tau falls along training. In the end the combination of the largest logit is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn, optim

from nmlearn.errors import ScheduleError
from nmlearn.maths import masks, noise
from nmlearn.maths import scores as scoring
from nmlearn.maths.combinations import table
from nmlearn.maths.pattern import Pattern
from nmlearn.methods.method import At, Method, State, Weight, grads, top_magnitudes
from nmlearn.methods.options import check_not_negative, refuse

# A logit, its gradient, two moments and the noise of every combination: more would not fit, and learn nothing.
MOST_COMBINATIONS = 200


@dataclass(frozen=True)
class MaskLLM(Method):
    """Learnable masks by Gumbel-softmax over combinations; the weights themselves do not learn.

    Attributes:
        end: progress at which the mask is hard and final.
        lr: of AdamW on the logits; None takes the weights' own.
        weight_decay: of AdamW on the logits.
        scale: kappa at the start and at the end, rising linearly.
        temperature: tau at the start and at the end, falling linearly.
        prior: "magnitude" favours combinations that hold the largest weights, "none" favours none.
        prior_strength: how much, in standard deviations of the logits a weight held.
        regularization: keeps the weight in use large, the paper's lambda.
        seed: of the noise and of the logits at the start.

    Raises:
        ScheduleError: end is not in (0, 1].
        ConfigError: a prior that is not known, or numbers that are not above 0.
    """

    end: float = 1.0
    lr: float | None = 5e-4
    weight_decay: float = 0.1
    scale: tuple[float, float] = (1e2, 5e2)
    temperature: tuple[float, float] = (4.0, 0.05)
    prior: Literal["magnitude", "none"] = "magnitude"
    prior_strength: float = 3.0
    regularization: float = 1e-5
    seed: int = 0

    name: ClassVar[str] = "maskllm"
    holds: ClassVar[Literal["frozen"]] = "frozen"
    dense_gradient: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for option in ("scale", "temperature"):
            if not all(value > 0 for value in getattr(self, option)):
                refuse(option, getattr(self, option), "it is two numbers above 0", "give the values at start and end")
        if not 0.0 < self.end <= 1.0:
            raise ScheduleError(
                where="maskllm", given=f"end={self.end}", wrong="progress lies in (0, 1]", fix="write 1 or less"
            )
        check_not_negative(self, "lr", "weight_decay", "regularization")

    def init(self, w: Weight) -> State:
        if w.pattern.combinations > MOST_COMBINATIONS:
            wrong = f"{w.pattern} has {w.pattern.combinations:,} combinations a group, each with a logit"
            refuse("pattern", f"{w.pattern} for {w.name}", wrong, f"use one of at most {MOST_COMBINATIONS}, or nm.LBC")
        whole = (*w.grouping.groups_shape(w.shape), w.pattern.combinations)
        start = noise.normal(whole, self.seed, 0, w.name).to(w.tensor.device, scoring.dtype_for(w.tensor))
        logits = w.shard(start) * 0.01
        if self.prior == "magnitude":
            held = scoring.of_combinations(w.grouping.view(top_magnitudes(w)), w.pattern)
            logits += 0.01 * self.prior_strength * (held - w.pattern.n / 2)
        return {"logits": logits}

    def setting(self, pattern: Pattern, progress: float) -> int:
        return int(progress >= self.end)

    def learn(self, weights: Sequence[Weight], at: At) -> None:
        if at.progress < self.end and self.regularization:
            used = [w.in_use for w in weights]
            torch._foreach_add_(grads(weights), used, alpha=-2 * self.regularization)

    def learned(self, state: State) -> tuple[str, ...]:
        return ("logits",)

    def optimizer(self, learned: list[nn.Parameter], lr: float) -> optim.Optimizer:
        return optim.AdamW(learned, lr, weight_decay=self.weight_decay)

    @property
    def needs_rate(self) -> bool:
        return self.lr is None

    def learning_rate(self, at: At) -> float:
        if at.progress >= self.end:
            return 0.0
        return at.lr if self.lr is None else self.lr

    def used(self, w: Weight, at: At) -> Tensor:
        if at.progress >= self.end:
            return masks.kept(w.tensor, self.mask(w))
        return self.relaxed(w, at)

    def relaxed(self, w: Weight, at: At) -> Tensor:
        along = min(1.0, at.progress / self.end)
        kappa, tau = (a + (b - a) * along for a, b in (self.scale, self.temperature))
        whole = (*w.grouping.groups_shape(w.shape), w.pattern.combinations)
        gumbel = w.shard(noise.gumbel(whole, self.seed, at.step, w.name).to(w.tensor.device))
        soft = scoring.of_weights(torch.softmax((kappa * w.state["logits"] + gumbel) / tau, -1), w.pattern)
        return (w.tensor * w.grouping.unview(soft)).to(w.tensor.dtype)

    def mask(self, w: Weight) -> Tensor:
        best = w.state["logits"].argmax(-1)
        return w.grouping.unview(table(w.pattern, best.device)[best])
