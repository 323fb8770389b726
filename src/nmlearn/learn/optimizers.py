"""What a sparsifier has to know about optimizers and the scalers and wrappers around them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.optim import Optimizer

from nmlearn.errors import AttachError
from nmlearn.learn.weight import SparseWeight
from nmlearn.methods.method import Method
from nmlearn.model.plan import PlanRow
from nmlearn.model.shards import local

# Their wrappers pass steps on, and write no weights themselves.
_PASSING_ON = {"torch", "accelerate", "lightning", "pytorch_lightning"}


def layers(optimizer: Any) -> list[Any]:
    """An optimizer in its wrappers: from the one that was given to the one that steps.

    What is inside is found by its kind, not by its name: accelerate's and Lightning's wrappers, Lookahead and SAM of
    several packages have other names for it.
    """
    found = [optimizer]
    while (inside := _inside(found[-1])) is not None and all(inside is not each for each in found):
        found.append(inside)
    return found


def innermost(optimizer: Any) -> Any:
    """The optimizer that steps, inside wrappers that pass steps on."""
    return layers(optimizer)[-1]


def _inside(layer: Any) -> Optimizer | None:
    if type(layer).__module__.startswith("torch."):  # a ZeroRedundancyOptimizer has one for a part of the weights
        return None
    candidates = [getattr(layer, "optimizer", None), *getattr(layer, "__dict__", {}).values()]
    held = _held(layer)
    return next((each for each in candidates if isinstance(each, Optimizer) and held <= _held(each)), None)


def _held(layer: Any) -> set[int]:
    return {id(p) for group in getattr(layer, "param_groups", ()) for p in group["params"]}


def with_part(optimizer: Optimizer) -> list[Optimizer]:
    """An optimizer, and the one that a ZeroRedundancyOptimizer steps this rank's part of the weights with."""
    part = getattr(optimizer, "optim", None)
    return [optimizer, part] if isinstance(part, Optimizer) else [optimizer]


def passes_on(layer: Any) -> bool:
    """Whether it is torch's own, or a wrapper that is known to write no weights."""
    return type(layer).__module__.partition(".")[0] in _PASSING_ON


def called(layers: Sequence[Any]) -> str:
    """The names of layers, as they are told."""
    return " around ".join(type(layer).__name__ for layer in layers)


def switching(layers: Sequence[Any]) -> list[Any]:
    """The layers whose ``eval()`` puts averages in place of the weights, and ``train()`` takes them back."""
    names = ("eval", "train")
    return [layer for layer in layers if not passes_on(layer) and all(hasattr(layer, name) for name in names)]


def rate(group: Mapping[str, Any], method: Method) -> float:
    """The learning rate of a parameter group; NaN where it has none and the method needs none.

    Raises:
        AttachError: it has none (Adafactor of transformers with ``relative_step``), and the method learns by it.
    """
    lr = group.get("lr")
    if lr is None and method.needs_rate:
        raise AttachError(
            where="attach",
            given="a parameter group without a learning rate",
            wrong=f"{method.name} learns by the weights' own learning rate, and this optimizer has none to read",
            fix="give the optimizer lr=... (Adafactor of transformers: relative_step=False too), or use a method "
            "without scores, such as gradual",
        )
    return math.nan if lr is None else float(lr)


class Groups:
    """The parameter groups that hold sparse weights, which may change while a model trains."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._outline = _outline(optimizer)

    def follow(self, optimizer: Optimizer, weights: Iterable[SparseWeight]) -> None:
        """Find the group of every weight again, where groups were added, removed or changed.

        Raises:
            AttachError: a weight is in none any more.
        """
        if (outline := _outline(optimizer)) == self._outline:
            return
        now = {id(p): i for i, group in enumerate(optimizer.param_groups) for p in group["params"]}
        gone = [w.name for w in weights if id(w.parameter) not in now]
        if gone:
            raise AttachError(
                where=gone[0],
                given=f"{type(optimizer).__name__} with other parameter groups than at attach",
                wrong=f"it no longer holds {len(gone)} sparse weights, which would never learn",
                fix="leave them in its groups, with a learning rate of 0 where they shall rest; or attach a new "
                "sparsifier, with a rule of None for them",
            )
        for w in weights:
            w.lr_group = now[id(w.parameter)]
        self._outline = outline


def _outline(optimizer: Optimizer) -> list[tuple[int, int]]:
    """What changes when a group is added, removed or given other weights; no pass over all of them at every step."""
    lists = [group["params"] for group in optimizer.param_groups]
    return [(len(params), id(params[0]) if params else 0) for params in lists]


def each(optimizer: object) -> list[Any]:
    """The optimizers that were given: one, or several in a list or another sequence."""
    return list(optimizer) if isinstance(optimizer, list | tuple) else [optimizer]


def homes(several: Sequence[list[Any]], rows: Sequence[PlanRow]) -> list[tuple[list[Any], set[str]]]:
    """The optimizers (by their :func:`layers`) that step sparse weights, with the names of these."""
    held = [_held(found[-1]) for found in several]
    names = [{row.name for row in rows if id(row.parameter) in ids} for ids in held]
    return [(found, own) for found, own in zip(several, names, strict=True) if own]


def has_stepped(optimizer: Optimizer, parameters: Iterable[Tensor]) -> bool:
    """Whether it has moved one of the parameters: it remembers a step, and something of it that is not zero.

    A step of nothing but zeros, by which torch.distributed.checkpoint makes a state, is none. SGD without momentum
    remembers nothing. ZeroRedundancyOptimizer has None in place of what another rank remembers, or remembers only in
    its part, which moves with the others: all ranks have to decide alike.
    """
    states = [optimizer.state[p] for p in parameters if p in optimizer.state]
    if any(state is None for state in states):
        return True
    states += [state for part in with_part(optimizer)[1:] for state in part.state.values()]
    moved = [state for state in states if "step" not in state or float(state["step"]) > 0]
    tensors = [t for state in moved for t in state.values() if isinstance(t, Tensor) and t.dim()]
    return any(bool(local(t).any()) for t in tensors)


def check(optimizer: Any, total_steps: object, method: Method) -> list[Any]:
    """Refuse an optimizer that no method can learn with.

    Args:
        optimizer: as the user gave it, in its wrappers.
        total_steps: as the user gave it.
        method: one that holds dense weights which others do not see needs an optimizer without averages.

    Returns:
        Its :func:`layers`.

    Raises:
        AttachError: an optimizer that steps in backward or evaluates its closure several times a step, one that
            averages weights that dense ones stand behind, one without the learning rate that the method learns by,
            what is no optimizer, or arguments that are swapped.
    """
    found = layers(optimizer)
    inner = found[-1]
    if not isinstance(inner, Optimizer):
        swapped = isinstance(total_steps, Optimizer)
        wrong = "the two arguments are the other way round" if swapped else "it is no torch optimizer"
        fix = "write attach(optimizer, total_steps)"
        raise AttachError(where="attach", given=repr(optimizer), wrong=wrong, fix=fix)
    averaging = [layer for layer in found if hasattr(layer, "_base_optimizer")]
    averaging += switching(found) if method.holds == "shadow" else []
    if method.holds in ("shadow", "frozen") and averaging:
        raise AttachError(
            where="attach",
            given=type(averaging[0]).__name__,
            wrong="it averages the weights in use, and this method learns in dense ones behind them",
            fix="use an optimizer without averages, or a method like LBC that has one weight only",
        )
    if getattr(inner, "_overlap_with_ddp", False):
        raise AttachError(
            where="attach",
            given=f"{type(optimizer).__name__}(overlap_with_ddp=True)",
            wrong="it steps inside backward, where nothing can be learned before and cleared after it",
            fix="set overlap_with_ddp=False",
        )
    if isinstance(inner, torch.optim.LBFGS):
        _refuse_closures("attach", inner)
    for group in inner.param_groups:
        rate(group, method)
    return found


def _refuse_closures(where: str, optimizer: Any) -> NoReturn:
    raise AttachError(
        where=where,
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
    if any(group.get("lr") is None or float(group["lr"]) for group in optimizer.param_groups):
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

    Raises:
        AttachError: by that closure, where it is called a second time.
    """
    closure = args[1] if len(args) > 1 else kwargs.get("closure")
    if closure is None:
        learn()
        return None

    calls = itertools.count()

    def then() -> Any:
        if next(calls):
            _refuse_closures("optimizer.step", args[0])
        loss = closure()
        learn()
        return loss

    return ((args[0], then, *args[2:]), kwargs) if len(args) > 1 else (args, kwargs | {"closure": then})
