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


def of_weights(a_gc: Tensor, pattern: Pattern) -> Tensor:
    """For every weight the sum over the combinations that hold it, the transpose of :func:`of_combinations`.

    In float64 for the same reasons; a gradient that is not finite counts as zero.

    Args:
        a_gc: float ``[..., C]``.

    Returns:
        ``[..., M]``, in the dtype of ``a_gc``.
    """
    wide = torch.float32 if a_gc.device.type == "mps" else torch.float64
    a_gm: Tensor = (a_gc.to(wide) @ table(pattern, a_gc.device, wide)).to(a_gc.dtype)
    if a_gm.requires_grad:
        a_gm.register_hook(lambda grad: grad.nan_to_num(0.0, 0.0, 0.0))
    return a_gm


def sgd_(
    scores: list[Tensor],
    momenta: list[Tensor],
    grads: list[Tensor],
    weights: list[Tensor],
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
    score_pass: training.ScorePass = training.score_step_,
) -> None:
    """One SGD step on per-weight scores, whose gradient is ``grad * weight``; in place.

    As torch.optim.SGD without dampening: v <- momentum v + (g w + weight_decay s); s <- s - lr v. The momenta start at
    zero, which makes the first step torch's first step too. Lists of tensors of the weights' shapes; scores and momenta
    have the dtype of :func:`dtype_for`, weights and grads any float dtype. In one pass over memory where the compiled
    kernels can, else a pass an operation; with the same bits as result.

    A score whose v is not finite, because its gradient is not, stays as it is, and its v is 0 from there on. That is a
    choice without a branch: nobody waits for a device to hear whether a gradient was finite.

    Args:
        score_pass: the compiled pass, which may do more in the same go.
    """
    lists = (scores, momenta, grads, weights)
    left = score_pass(*lists, lr=lr, momentum=momentum, weight_decay=weight_decay)
    if not left:
        return
    scores, momenta, grads, weights = ([tensors[i] for i in left] for tensors in lists)
    torch._foreach_mul_(momenta, momentum)
    torch._foreach_addcmul_(momenta, grads, weights)
    if weight_decay:
        torch._foreach_add_(momenta, scores, alpha=weight_decay)
    for v in momenta:
        v.nan_to_num_(0.0, 0.0, 0.0)
    torch._foreach_add_(scores, momenta, alpha=-lr)


def relaxed(w_gm: Tensor, a_gc: Tensor, alive_gc: Tensor, pattern: Pattern) -> Tensor:
    """The weight in use, straight through its mask: ``w_j sum_{k holds j, alive} a_k``, for its gradient alone.

    The gradient with respect to ``a_k`` is the sum of ``g_j w_j`` over the members of k, zero where k is removed.
    Args:
        w_gm: ``[..., M]``, without gradient.
        a_gc: ``[..., C]`` scores.
        alive_gc: bool ``[..., C]``.

    Returns:
        ``[..., M]``, in the dtype of the scores.
    """
    return w_gm.to(a_gc.dtype) * of_weights(a_gc * alive_gc, pattern)
