"""Scores of combinations, factored into one score per weight, and the optimizers that move them.

Fact (LBC, implementers' note 1): SGD with momentum and weight decay is linear, all scores a_k of a group start as the
same sum and receive the gradient sum_{j in k} g_j w_j. So a_k = sum_{j in k} s_j at every step, where s_j is one score
per weight that receives g_j w_j. C(M, N) numbers a group become M.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nmlearn.maths.combinations import table
from nmlearn.maths.pattern import Pattern
from nmlearn.native import training


def dtype_for(weight: Tensor) -> torch.dtype:
    """Scores are float32, but float64 for a float64 weight (double precision is used to check, never to train)."""
    return torch.float64 if weight.dtype == torch.float64 else torch.float32


def of_combinations(s_gm: Tensor, pattern: Pattern) -> Tensor:
    """Scores of all combinations, the sums of their members' scores.

    Taken in float64, where the few float32 terms of a sum add up without rounding: ties are ties on every rank and
    device whatever the order of summation, and no autocast or TF32 setting that holds around the step reaches them.

    Args:
        s_gm: float ``[..., M]``.

    Returns:
        float64 ``[..., C]`` (float32 on MPS, which has no float64).
    """
    wide = torch.float32 if s_gm.device.type == "mps" else torch.float64
    scores: Tensor = s_gm.to(wide) @ table(pattern, s_gm.device, wide).t()
    return scores


def sgd_(
    scores: list[Tensor],
    momenta: list[Tensor],
    grads: list[Tensor],
    weights: list[Tensor],
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
    weight_step: training.WeightStep | None = None,
) -> list[int]:
    """One SGD step on per-weight scores, whose gradient is ``grad * weight``; in place.

    As torch.optim.SGD without dampening: v <- momentum v + (g w + weight_decay s); s <- s - lr v. The momenta start at
    zero, which makes the first step torch's first step too. Lists of tensors of the weights' shapes; scores and momenta
    have the dtype of :func:`dtype_for`, weights and grads any float dtype. In one pass over memory where the compiled
    kernels can, else a pass an operation; with the same bits as result.

    A score whose v is not finite, because its gradient is not, stays as it is, and its v is 0 from there on. That is a
    choice without a branch: nobody waits for a device to hear whether a gradient was finite.

    Args:
        weight_step: what the optimizer is about to do to the weights, which the same pass may do.

    Returns:
        The indices of the weights that were stepped too.
    """
    lists = (scores, momenta, grads, weights)
    left, stepped = training.score_step_(
        *lists, lr=lr, momentum=momentum, weight_decay=weight_decay, weight_step=weight_step
    )
    if not left:
        return stepped
    scores, momenta, grads, weights = ([tensors[i] for i in left] for tensors in lists)
    torch._foreach_mul_(momenta, momentum)
    torch._foreach_addcmul_(momenta, grads, weights)
    if weight_decay:
        torch._foreach_add_(momenta, scores, alpha=weight_decay)
    for v in momenta:
        v.nan_to_num_(0.0, 0.0, 0.0)
    torch._foreach_add_(scores, momenta, alpha=-lr)
    return stepped


def explicit_state(a_gc: Tensor, optimizer: str) -> dict[str, Tensor]:
    """The state of explicit scores ``[..., C]`` that start at ``a_gc``, for "sgd" or "adamw"."""
    if optimizer == "sgd":
        return {"score": a_gc, "momentum": torch.zeros_like(a_gc)}
    count = torch.zeros((), dtype=torch.int64)
    return {"score": a_gc, "mean": torch.zeros_like(a_gc), "square": torch.zeros_like(a_gc), "count": count}


def explicit_step_(
    state: dict[str, Tensor],
    grad_gm: Tensor,
    weight_gm: Tensor,
    pattern: Pattern,
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
) -> None:
    """One step on explicit scores, whose gradient is the sum of ``grad * weight`` over a combination's members.

    SGD or AdamW (Loshchilov and Hutter, arXiv 1711.05101, betas 0.9 and 0.999, eps 1e-8) by what the state holds. A
    removed combination has no gradient. A product that is not finite counts as zero.

    Args:
        state: as :func:`explicit_state` made it, with the survivors in ``state["alive"]``; changed in place.
        grad_gm, weight_gm: ``[..., M]``.
    """
    score = state["score"]
    change_gm = (grad_gm.to(score.dtype) * weight_gm.to(score.dtype)).nan_to_num_(0.0, 0.0, 0.0)
    d = of_combinations(change_gm, pattern).to(score.dtype).mul_(state["alive"])
    if "momentum" in state:
        v = state["momentum"].mul_(momentum).add_(d).add_(score, alpha=weight_decay)
        score.sub_(v, alpha=lr)
        return
    t = int(state["count"].add_(1))
    mean = state["mean"].lerp_(d, 1 - 0.9)
    root = state["square"].mul_(0.999).addcmul_(d, d, value=1 - 0.999).div(1 - 0.999**t).sqrt_()
    score.mul_(1 - lr * weight_decay).addcdiv_(mean, root.add_(1e-8), value=-lr / (1 - 0.9**t))
