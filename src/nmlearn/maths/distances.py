"""How far a network's outputs are from those of its teacher: what distillation makes small.

Shapes: ``[*tokens, K]``, K values or classes per token; ``keep`` is bool ``[*tokens]``, or None for all tokens. What is
not kept has no influence, whatever it is.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def relative_error(x: Tensor, target: Tensor, keep: Tensor | None = None) -> Tensor:
    """The mean square of ``x - target`` over the variance of all values of ``target``: 1 is as good as their mean.

    Returns:
        a scalar, float32, or float64 for inputs of float64. Where all of ``target`` is one value, its variance is taken
        as the smallest that the type can divide by.
    """
    x, target = _wide(x), _wide(target)
    if keep is not None:
        x, target = (torch.where(keep[..., None], some, 0.0) for some in (x, target))
    mean = target.mean()
    if keep is not None:
        mean = torch.where(keep[..., None], mean / keep.to(mean).mean().clamp_min(torch.finfo(mean.dtype).tiny), 0.0)
    # Both are means over all tokens, of which those that are not kept are zero: their number cancels.
    return F.mse_loss(x, target) / (target - mean).square().mean().clamp_min(torch.finfo(x.dtype).eps ** 2)


def divergence(logits: Tensor, target: Tensor, temperature: float, keep: Tensor | None = None) -> Tensor:
    """The mean over tokens of KL(target || logits), both softened by a temperature, times its square, in nats.

    Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network" (2015), section 2: the square keeps the
    size of the gradients.

    Returns:
        a scalar, float32, or float64 for logits of float64.
    """
    logits, target = _wide(logits), _wide(target)
    if keep is not None:
        logits, target = (torch.where(keep[..., None], some, 0.0) for some in (logits, target))
    least = torch.finfo(logits.dtype).min  # in place of minus infinity, of which a share of zero is no number
    log_q, log_p = (F.log_softmax(some / temperature, -1).clamp_min(least) for some in (logits, target))
    each = (log_p.exp() * (log_p - log_q)).sum(-1)
    if keep is None:
        return each.mean() * temperature**2
    return torch.where(keep, each, 0.0).sum() / keep.sum().clamp_min(1) * temperature**2


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
