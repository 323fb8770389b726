"""The last check: does every group of every taken weight fit its pattern?"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from nmlearn.errors import ViolationError
from nmlearn.groups import Grouping


def violation(weight: Tensor, grouping: Grouping) -> str:
    """What is wrong with a weight, or nothing: how many groups keep too many, and the first of them."""
    counts = grouping.view(weight != 0).sum(-1)
    bad = counts > grouping.pattern.n
    if not bool(bad.any()):
        return ""
    first = torch.nonzero(bad)[0].tolist()
    return (
        f"{int(bad.sum())} of {bad.numel()} groups break {grouping.pattern}, "
        f"the first at {first} with {int(counts[tuple(first)])} non-zeros"
    )


def verify(weights: Mapping[str, tuple[Tensor, Grouping]], progress: float) -> None:
    """Check named weights.

    Raises:
        ViolationError: a table of the weights that break their pattern.
    """
    found = {name: violation(weight, grouping) for name, (weight, grouping) in weights.items()}
    bad = {name: why for name, why in found.items() if why}
    if not bad:
        return
    width = max(map(len, bad))
    raise ViolationError(
        where=next(iter(bad)),
        given=f"a model at progress {progress:.3f} of its schedule",
        wrong="\n  ".join(
            [f"{len(bad)} of {len(found)} weights break their pattern", *(f"{n:<{width}}  {w}" for n, w in bad.items())]
        ),
        fix="finalize after the schedule has ended, and let nothing but the optimizer write into these weights",
    )
