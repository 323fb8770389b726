"""What a sparsifier has to know about optimizers and the scalers and wrappers around them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from nmlearn.errors import AttachError
from nmlearn.methods.method import Method
from nmlearn.model.plan import PlanRow
from nmlearn.model.shards import local


def innermost(optimizer: Optimizer) -> Optimizer:
    """The optimizer that steps, inside wrappers that pass steps on (as accelerate's and timm's Lookahead do)."""
    for name in ("optimizer", "_base_optimizer"):
        if isinstance(inner := getattr(optimizer, name, None), Optimizer):
            return innermost(inner)
    return optimizer


def each(optimizer: object) -> list[Any]:
    """The optimizers that were given: one, or several in a list or another sequence."""
    return list(optimizer) if isinstance(optimizer, list | tuple) else [optimizer]


def stepping(several: Sequence[Optimizer], rows: Sequence[PlanRow]) -> list[tuple[Optimizer, set[str]]]:
    """The optimizers that step sparse weights, with the names of these."""
    ids = [{id(p) for group in one.param_groups for p in group["params"]} for one in several]
    names = [{row.name for row in rows if id(row.parameter) in held} for held in ids]
    return [(one, own) for one, own in zip(several, names, strict=True) if own]


def has_stepped(optimizer: Optimizer, parameters: Iterable[Tensor]) -> bool:
    """Whether it has moved one of the parameters: it remembers a step, and something of it that is not zero.

    A step of nothing but zeros, by which torch.distributed.checkpoint makes a state, is none. SGD without momentum
    remembers nothing.
    """
    states = [optimizer.state[p] for p in parameters if p in optimizer.state]
    moved = [state for state in states if "step" not in state or float(state["step"]) > 0]
    tensors = [t for state in moved for t in state.values() if isinstance(t, Tensor) and t.dim()]
    return any(bool(local(t).any()) for t in tensors)


def check(optimizer: Any, total_steps: object, method: Method) -> None:
    """Refuse an optimizer that no method can learn with.

    Args:
        optimizer: as the user gave it, in its wrappers.
        total_steps: as the user gave it.
        method: one that holds dense weights which others do not see needs an optimizer without averages.

    Raises:
        AttachError: an optimizer that steps in backward or evaluates its closure several times a step, one that
            averages weights that dense ones stand behind, what is no optimizer, or arguments that are swapped.
    """
    if not isinstance(innermost(optimizer), Optimizer):
        swapped = isinstance(total_steps, Optimizer)
        wrong = "the two arguments are the other way round" if swapped else "it is no torch optimizer"
        fix = "write attach(optimizer, total_steps)"
        raise AttachError(where="attach", given=repr(optimizer), wrong=wrong, fix=fix)
    if method.holds in ("shadow", "frozen") and hasattr(optimizer, "_base_optimizer"):
        raise AttachError(
            where="attach",
            given=type(optimizer).__name__,
            wrong="it averages the weights in use, and this method learns in dense ones behind them",
            fix="use the optimizer inside of it, or a method like LBC that has one weight only",
        )
    if getattr(innermost(optimizer), "_overlap_with_ddp", False):
        raise AttachError(
            where="attach",
            given=f"{type(optimizer).__name__}(overlap_with_ddp=True)",
            wrong="it steps inside backward, where nothing can be learned before and cleared after it",
            fix="set overlap_with_ddp=False",
        )
    if isinstance(innermost(optimizer), torch.optim.LBFGS):
        raise AttachError(
            where="attach",
            given=type(optimizer).__name__,
            wrong="it evaluates its closure several times a step",
            fix="use an optimizer with one gradient a step",
        )


def only_makes_state(optimizer: Optimizer, kwargs: Mapping[str, Any]) -> bool:
    """Whether this step is none: ``torch.distributed.checkpoint.state_dict`` calls ``step(closure=None)`` with learning
    rates and gradients of zero on an optimizer without state, so that it makes one, and the schedule must not move.
    """
    if optimizer.state or dict(kwargs) != {"closure": None}:
        return False
    if any(float(group.get("lr", 1.0)) for group in optimizer.param_groups):
        return False
    grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    return not any(bool(local(grad).any()) for grad in grads)


def unscale(optimizer: Optimizer) -> bool:
    """Do what GradScaler leaves to fused optimizers. Returns whether the step will be skipped."""
    found, scale = getattr(optimizer, "found_inf", None), getattr(optimizer, "grad_scale", None)
    if found is not None and bool(found):
        return True
    if scale is not None:
        grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        torch._foreach_mul_(grads, float(scale) ** -1)
        optimizer.grad_scale = None  # type: ignore[attr-defined]
    return False


def before_stepping(args: tuple[Any, ...], kwargs: dict[str, Any], learn: Callable[[], None]) -> Any:
    """Call ``learn`` when the gradients of a step are there: at once, or right behind the closure that makes them.

    Args:
        args, kwargs: of ``optimizer.step``, the optimizer first, as a step pre-hook gets them.

    Returns:
        What the pre-hook returns: nothing, or the arguments with another closure.
    """
    closure = args[1] if len(args) > 1 else kwargs.get("closure")
    if closure is None:
        learn()
        return None

    def then() -> Any:
        loss = closure()
        learn()
        return loss

    return ((args[0], then, *args[2:]), kwargs) if len(args) > 1 else (args, kwargs | {"closure": then})
