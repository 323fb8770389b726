"""Stepping weights ahead of torch.optim.AdamW where it steps tensor by tensor, as it does on CPUs by default.

There it takes ten passes over memory, one of them a square root that is several times slower where the second moment is
zero: under every pruned weight.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, optim

from nmlearn.learn.ahead import Ahead, keeps
from nmlearn.learn.weight import SparseWeight
from nmlearn.native.training import AdamWStep, WeightStep

_ROOM = 1 << 16  # values for a thread


class FusedAdamW(Ahead):
    """Steps the weights of an AdamW; their moments and counts of steps stay in its state."""

    @functools.cached_property
    def _roots(self) -> Tensor:
        """Room for square roots: small enough for a cache, and work for every thread."""
        return torch.empty(_ROOM * max(4, torch.get_num_threads()), dtype=torch.float32, device="cpu")

    def _applies(self, group: dict[str, Any]) -> bool:
        return type(self.optimizer) is optim.AdamW and _is_plain(group) and self._alone()

    def _step(self, group: dict[str, Any], own: list[SparseWeight]) -> WeightStep:
        known = [self._known(w.parameter) for w in own]
        counts = [_next(state.get("step")) for state in known]
        by_count = {count: _numbers(group, count) for count in set(counts) if count}
        return WeightStep(
            moments=[state["exp_avg"] if count else None for state, count in zip(known, counts, strict=True)],
            keeps=keeps(own),
            seconds=[state.get("exp_avg_sq") for state in known],
            adamw=[by_count.get(count) for count in counts],
            roots=self._roots if by_count else None,
        )

    def _count(self, stepped: list[SparseWeight]) -> None:
        if stepped:
            torch._foreach_add_([self.optimizer.state[w.parameter]["step"] for w in stepped], 1)


def _next(step: object) -> float:
    """The number of a step that is about to be done; 0 where AdamW has no state yet or keeps its count elsewhere."""
    return step.item() + 1 if type(step) is Tensor and step.is_cpu and step.dim() == 0 else 0.0


def _numbers(group: dict[str, Any], count: float) -> AdamWStep:
    """Rounded where AdamW rounds: in float64 up to here, and to float32 for tensors."""
    (beta1, beta2), lr = group["betas"], group["lr"]
    return AdamWStep(
        shrink=1 - lr * group["weight_decay"] if group["weight_decay"] else 1.0,
        lerp=1 - beta1,
        beta2=beta2,
        new_second=1 - beta2,
        root_bias=(1 - beta2**count) ** 0.5,
        epsilon=group["eps"],
        minus_size=-(lr / (1 - beta1**count)),
    )


def _is_plain(group: dict[str, Any]) -> bool:
    """Whether it is Loshchilov and Hutter's AdamW (arXiv 1711.05101) with plain numbers, and steps tensor by tensor."""
    extras = ("amsgrad", "maximize", "capturable", "differentiable", "fused", "foreach")
    numbers = [*group["betas"], group["lr"], group["weight_decay"], group["eps"]]
    plain = all(isinstance(number, float | int) for number in numbers) and group["betas"][0] > 0.5
    return plain and bool(group["decoupled_weight_decay"]) and not any(group[key] for key in extras)
