"""Adam, for methods that step dense weights themselves because they change what it remembers of the gradients.

Kingma and Ba, *Adam: A Method for Stochastic Optimization*, ICLR 2015, arXiv 1412.6980, algorithm 1, with the weight
decay of Loshchilov and Hutter, arXiv 1711.05101. Both moments count their own gradients, so that one may rest.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nmlearn.maths.scores import dtype_for

FIRST, SECOND = "exp_avg", "exp_avg_sq"
FIRSTS, SECONDS = "firsts", "seconds"  # the keys of how many gradients each has seen


def start(weight: Tensor) -> dict[str, Tensor]:
    """The moments of a weight before its first gradient: of its shape, float32 (float64 for float64)."""
    moments = {key: torch.zeros_like(weight, dtype=dtype_for(weight)) for key in (FIRST, SECOND)}
    return moments | {key: torch.zeros((), dtype=torch.int64, device="cpu") for key in (FIRSTS, SECONDS)}


def first_(state: dict[str, Tensor], grad: Tensor, beta: float) -> None:
    """Let the first moment follow a gradient of the weight's shape."""
    state[FIRST].lerp_(grad.to(state[FIRST].dtype), 1 - beta)
    state[FIRSTS] += 1


def second_(state: dict[str, Tensor], grad: Tensor, beta: float) -> None:
    """Let the second moment follow a gradient of the weight's shape."""
    wide = grad.to(state[SECOND].dtype)
    state[SECOND].mul_(beta).addcmul_(wide, wide, value=1 - beta)
    state[SECONDS] += 1


def step_(
    weight: Tensor, state: dict[str, Tensor], lr: float, betas: tuple[float, float], eps: float, weight_decay: float
) -> None:
    """A step of a weight, in place, by the moments as they are; each has seen a gradient.

    Args:
        betas: those that the moments followed by, for the corrections of their start at zero.
        weight_decay: decoupled, times the learning rate.
    """
    unbiased = [1 - beta ** int(state[count]) for beta, count in zip(betas, (FIRSTS, SECONDS), strict=True)]
    root = (state[SECOND] / unbiased[1]).sqrt_().add_(eps)
    weight.mul_(1 - lr * weight_decay)
    weight.sub_((state[FIRST] / root).mul_(lr / unbiased[0]))
