"""The end of learning: the weights that the model has by then, and what to say of those that break their pattern."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from nmlearn.errors import ViolationError
from nmlearn.learn.refusals import parameters, replaced
from nmlearn.maths.pattern import Pattern
from nmlearn.model.plan import Plan, PlanRow
from nmlearn.model.shards import is_sharded, local

_FIRST = "first load or change the model, then make the optimizer and the sparsifier, and attach"


@dataclass(frozen=True)
class Summary:
    """What was verified; ``str(summary)`` is two lines.

    Attributes:
        weights: how many weights are sparse.
        density: the share of their values that are not zero (of this process's shards).
        dense_bytes, packed_bytes: of the whole weights as they are, and about what they take packed: N values and a
            number of ceil(log2(C(M, N))) bits a group.
    """

    weights: int
    density: float
    dense_bytes: int
    packed_bytes: int

    def __str__(self) -> str:
        sizes = f"{self.dense_bytes:,} bytes dense, about {self.packed_bytes:,} packed"
        return (
            f"{self.weights} weights verified: density {self.density:.3f}, {sizes}\n"
            'next: nm.save(model, "model.safetensors") packs them in a file, nm.accelerate(model.eval(), x) here'
        )


def summary(rows: Sequence[PlanRow], verified: Mapping[str, Tensor]) -> Summary:
    """Sum up the verified weights (local shards, by name)."""
    kept = sum(int(tensor.count_nonzero()) for tensor in verified.values())
    values = sum(tensor.numel() for tensor in verified.values())
    sizes = [(row.parameter.numel(), verified[row.name].itemsize, row.grouping.pattern) for row in rows]
    packed = sum(count // p.m * p.n * size + -(-(count // p.m * _bits(p)) // 8) for count, size, p in sizes)
    return Summary(len(rows), kept / values if values else 1.0, sum(count * size for count, size, _ in sizes), packed)


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
            raise ViolationError(where=row.name, given=given, wrong=wrong, fix=_FIRST)
        found[row.name] = local(now)
    return found


def advice(plan: Plan, model: nn.Module, step: int, total_steps: int, progress: float) -> str:
    """What to do where the model breaks a pattern, at this step."""
    names = [row.name for row in replaced(plan, model) if not is_sharded(row.parameter)]
    if names:
        return f"the model has another parameter than at attach in {len(names)} places, such as {names[0]}: {_FIRST}"
    if progress == 1.0:
        return "let nothing but the optimizer write into these weights"
    if not step:
        return "no optimizer step was seen; was attach called on this optimizer? it must be, before training"
    return (
        f"only step {step} of total_steps={total_steps} was seen: finalize after the last one. Was training resumed "
        "without the sparsifier's state, were micro-batches counted in total_steps, or did a scaler skip steps?"
    )


def warn_beyond(step: int, total_steps: int) -> None:
    """Warn once that training goes on, at the step that is more than a tenth beyond the last; a few are a remainder."""
    if step - 1 <= 1.1 * total_steps < step:
        warnings.warn(
            f"optimizer step {step} is beyond total_steps={total_steps}: the schedule ended long before training; "
            "give attach the number of optimizer steps of the whole training",
            stacklevel=7,  # the line that calls optimizer.step
        )
