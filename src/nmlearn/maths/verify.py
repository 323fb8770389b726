"""The last check: does every group of every sparse weight fit its pattern?"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from nmlearn.errors import ViolationError
from nmlearn.maths.groups import Grouping

_FIX = "finalize after the schedule has ended, and let nothing but the optimizer write into these weights"


def verify(
    weights: Mapping[str, tuple[Tensor, Grouping]], progress: float, fix: Callable[[], str] = lambda: _FIX
) -> None:
    """Check named weights.

    Args:
        weights: what to check, and where its groups lie.
        progress: how far the schedule has come.
        fix: says what to do about those that break their pattern.

    Raises:
        ViolationError: a table of the weights that break their pattern.
    """
    found = {name: grouping.violation(weight != 0) for name, (weight, grouping) in weights.items()}
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
        fix=fix(),
    )
