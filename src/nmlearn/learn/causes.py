"""Why a model does not have its patterns at the end: the causes that fit what was seen, and the way out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from nmlearn.learn.rewriting import IN_A_ROW, Watch, unseen

FIRST = "first load or change the model, then make the optimizer and the sparsifier, and attach"
_NOTHING_ELSE = "let nothing but the optimizer write into these weights"
_APPLY = "finalize(complete=True) applies the final masks again"
_LAST_SHARE = 0.9  # a scaler skips a few steps, not most of them


@dataclass(frozen=True)
class Seen:
    """What a sparsifier knows at the end.

    Attributes:
        step, total_steps: seen, and promised at attach.
        ended: whether no mask changes any more.
        attached: whether it still holds the masks.
        skipped: steps that a scaler skipped where the sparsifier saw it.
        optimizer_steps: how many the optimizer itself has counted; None where it does not count.
        replaced: the weights in whose place the model has another parameter.
        written: the weights with values where they were pruned.
        sparse: how many weights are sparse.
        watch: on who else writes them; None where it is not attached.
    """

    step: int
    total_steps: int
    ended: bool
    attached: bool
    skipped: int = 0
    optimizer_steps: int | None = None
    replaced: Sequence[str] = ()
    written: Sequence[str] = ()
    sparse: int = 0
    watch: Watch | None = None


def advice(seen: Seen) -> str:
    """What to do where the model breaks a pattern."""
    if seen.replaced:
        count, one = len(seen.replaced), seen.replaced[0]
        offer = f"; {_APPLY}, to these too" if seen.ended and seen.attached else ""
        return f"the model has another parameter than at attach in {count} places, such as {one}: {FIRST}{offer}"
    if seen.ended:
        return _written(seen)
    if not seen.step:
        return f"no optimizer step was seen{unseen(*_optimizer(seen))}"
    causes = "".join(f" {cause}" for cause in _too_few_steps(seen))
    return (
        f"only step {seen.step} of total_steps={seen.total_steps} was seen: finalize after the last one.{causes} "
        "finalize(complete=True) makes the last removals now, by what was learned so far"
    )


def _written(seen: Seen) -> str:
    """What to do about values that came after the last removal."""
    if not seen.attached:
        return _NOTHING_ELSE
    if (by := _by_optimizer(seen.watch)) and seen.written:
        return f"{by}; {_APPLY}"
    if seen.written and len(seen.written) == seen.sparse:
        cause = "a checkpoint from before the last removals was loaded, or an average copied in: "
        return f"{cause}{_NOTHING_ELSE}, or {_APPLY}"
    return f"{_NOTHING_ELSE}; {_APPLY}"


def _optimizer(seen: Seen) -> tuple[str, Sequence[str]]:
    return (seen.watch.called, seen.watch.own_steps) if seen.watch else ("", ())


def _by_optimizer(watch: Watch | None) -> str:
    """How the optimizer itself may have written pruned weights; empty where it does not."""
    if watch is None or watch.trusted:
        return ""
    if watch.came_back >= IN_A_ROW:
        return (
            f"values came back before {watch.came_back} of the steps: {watch.called} writes weights after its step, "
            "use the optimizer inside of it"
        )
    if watch.switches:
        return f"{watch.called}.eval() puts averages in place of the weights, or others wrote into them"
    return f"{watch.called} may have written them after its step, or a checkpoint from before was loaded"


def _too_few_steps(seen: Seen) -> Iterable[str]:
    if seen.written:
        yield (
            f"{len(seen.written)} weights have values where they were pruned: was a checkpoint from before these "
            "removals loaded, or an average copied in?"
        )
    if seen.optimizer_steps is None:
        yield "Was training resumed without the sparsifier's state?"
    elif seen.optimizer_steps > seen.step:
        yield (
            f"The optimizer has made {seen.optimizer_steps} steps: was training resumed without the sparsifier's "
            "state, or attach called late?"
        )
    times = round(seen.total_steps / seen.step)
    if times > 1 and abs(seen.total_steps / seen.step - times) <= min(0.02 * times, 0.1):
        yield f"It is {times} times the steps: were micro-batches counted in total_steps?"
    if seen.skipped:
        yield f"A scaler skipped {seen.skipped} steps, which do not count."
    elif seen.step >= _LAST_SHARE * seen.total_steps:
        yield "Did a scaler skip steps? They do not count."
