"""The end of learning: has it come, the weights that the model has by then, and what is told of them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from nmlearn.errors import ViolationError
from nmlearn.learn import causes
from nmlearn.learn.living import Bond
from nmlearn.learn.notices import Notices
from nmlearn.learn.refusals import replaced
from nmlearn.learn.rewriting import Watch
from nmlearn.learn.weight import SparseWeight
from nmlearn.maths import masks
from nmlearn.maths.pattern import Pattern
from nmlearn.maths.verify import verify
from nmlearn.methods.method import Method
from nmlearn.model.names import parameters
from nmlearn.model.plan import PlanRow
from nmlearn.model.shards import is_sharded, local


@dataclass(frozen=True)
class Summary:
    """What was verified; ``str(summary)`` is two lines.

    Attributes:
        weights: how many weights are sparse.
        density: the share of their values that are not zero (of this process's shards).
        dense_bytes, packed_bytes: of the whole weights as they are, and about what they take packed: N values and a
            number of ceil(log2(C(M, N))) bits a group.
        density_before: their density before finalize changed anything.
        removed: how many of their values finalize set to zero; 0 unless it completed, or finished an average.
    """

    weights: int
    density: float
    dense_bytes: int
    packed_bytes: int
    density_before: float
    removed: int

    def __str__(self) -> str:
        sizes = f"{self.dense_bytes:,} bytes dense, about {self.packed_bytes:,} packed"
        before = f"{self.removed:,} values removed just now, density {self.density_before:.3f} before; "
        return (
            f"{self.weights} weights verified: {before if self.removed else ''}density {self.density:.3f}, {sizes}\n"
            'next: nm.save(model, "model.safetensors") packs them in a file, nm.accelerate(model.eval(), x) here'
        )


def kept(tensors: Mapping[str, Tensor]) -> int:
    """How many of the values of tensors are not zero."""
    return sum(int(tensor.count_nonzero()) for tensor in tensors.values())


def summary(rows: Sequence[PlanRow], verified: Mapping[str, Tensor], before: int | None = None) -> Summary:
    """Sum up the verified weights (local shards, by name), and what was kept of them before; None for the same."""
    now, values = kept(verified), sum(tensor.numel() for tensor in verified.values())
    before = now if before is None else before
    sizes = [(row.parameter.numel(), verified[row.name].itemsize, row.grouping.pattern) for row in rows]
    packed = sum(count // p.m * p.n * size + -(-(count // p.m * _bits(p)) // 8) for count, size, p in sizes)
    densities = [count / values if values else 1.0 for count in (now, before)]
    dense = sum(count * size for count, size, _ in sizes)
    return Summary(len(rows), densities[0], dense, packed, densities[1], before - now)


def _bits(pattern: Pattern) -> int:
    return (math.comb(pattern.m, pattern.n) - 1).bit_length()


def weights_now(rows: Sequence[PlanRow], model: nn.Module) -> dict[str, Tensor]:
    """The sparse weights (their local shards) that the model has now, by qualified name.

    Raises:
        ViolationError: it has no weight of a name any more, or one of another shape.
    """
    named, found = parameters(model), {}
    for row in rows:
        # A sharded weight goes by another parameter while its layer is gathered.
        now = row.parameter if is_sharded(row.parameter) else named.get(row.name)
        if now is None or now.shape != row.parameter.shape:
            given = "a model without it" if now is None else f"a weight of shape {tuple(now.shape)}"
            learned = f"the weight of shape {tuple(row.parameter.shape)} that was learned"
            wrong = f"{learned} was replaced after the sparsifier was made"
            raise ViolationError(where=row.name, given=given, wrong=wrong, fix=causes.FIRST)
        found[row.name] = local(now)
    return found


def ended(method: Method, weights: Sequence[SparseWeight]) -> bool:
    """Whether no schedule removes anything any more; the first step decides at the earliest.

    Every rank answers alike: it depends on the schedules alone.
    """
    return all(w.setting is not None and method.settled(w.grouping.pattern, w.setting) for w in weights)


def can_complete(method: Method, weights: Sequence[SparseWeight], step: int) -> bool:
    """Whether there is something to choose by: a step was seen, or the schedule waits for none."""
    return step > 0 or method.all_settled({w.grouping.pattern for w in weights}, 0.0)


By = tuple[Bond, Notices, Watch] | None


def check(sparsifier: Any, weights: Sequence[SparseWeight], by: By, tensors: Mapping[str, Tensor]) -> None:
    """Verify tensors by their weights' names.

    Args:
        sparsifier: its public attributes are read.
        weights: what it holds; none where it is not attached.
        by: what has seen its steps while it was attached.

    Raises:
        ViolationError: those that break their pattern, with the causes that fit.
    """
    final = {row.name: row.grouping for row in sparsifier.plan.sparse}
    final |= {w.name: replace(w.grouping, pattern=sparsifier.method.final(w.seen())) for w in weights}
    checked = {name: (tensor, final[name]) for name, tensor in tensors.items()}
    verify(checked, sparsifier.progress, lambda: _advice(sparsifier, weights, by))


def _advice(sparsifier: Any, weights: Sequence[SparseWeight], by: By) -> str:
    plan, model = sparsifier.plan, sparsifier.model
    seen = causes.Seen(
        step=sparsifier.step,
        total_steps=sparsifier.total_steps,
        ended=sparsifier.ended,
        attached=by is not None,
        skipped=by[1].skipped if by else 0,
        optimizer_steps=by[0].counted() if by else None,
        replaced=[row.name for row in replaced(plan, model) if not is_sharded(row.parameter)],
        written=written(sparsifier.method, weights, {row.name: local(row.parameter) for row in plan.sparse}),
        sparse=len(plan.sparse),
        watch=by[2] if by else None,
    )
    return causes.advice(seen)


def written(method: Method, weights: Sequence[SparseWeight], now: Mapping[str, Tensor]) -> list[str]:
    """The names of weights that are not zero where their masks prune.

    Args:
        now: what the model has, by name. Where a soft mask is in use, nothing is known of that.
    """
    if not weights or (method.holds == "frozen" and not ended(method, weights)):
        return []
    seen = [(w, now[w.name]) for w in weights if w.name in now]
    return [w.name for w, tensor in seen if bool((tensor[~method.mask(w.seen()).to(tensor.device)] != 0).any())]


def clear(tensors: Mapping[str, Tensor], final: Mapping[str, Tensor]) -> None:
    """Give tensors their final masks, in place; both by name, bool the masks."""
    for name, tensor in tensors.items():
        masks.clear_(tensor, masks.bits(final[name]).to(tensor.device))


def warn_beyond(step: int, total_steps: int) -> None:
    """Warn once that training goes on, at the step that is more than a tenth beyond the last; a few are a remainder."""
    if step - 1 <= 1.1 * total_steps < step:
        warnings.warn(
            f"optimizer step {step} is beyond total_steps={total_steps}: the schedule ended long before training; "
            "give attach the number of optimizer steps of the whole training",
            stacklevel=9,  # the line that calls optimizer.step
        )
