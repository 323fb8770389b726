"""What a sparsifier cannot work with, found out when it is made or attached, with the reason and the way out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from nmlearn.errors import AttachError, ConfigError, StateError
from nmlearn.maths.groups import misfit
from nmlearn.maths.pattern import Pattern
from nmlearn.methods.method import Method
from nmlearn.model.names import parameters
from nmlearn.model.plan import Plan, PlanRow
from nmlearn.model.shards import chunks, is_sharded, local


def check_method(method: object) -> None:
    """Refuse what is no method: a pattern, or the class of one.

    Raises:
        ConfigError: it says what to write.
    """
    if isinstance(method, Method):
        return
    where, given = "Sparsifier(method=...)", repr(method)
    if isinstance(method, type) and issubclass(method, Method):
        fix = f'write {method.__name__}("2:4"), with a pattern'
        raise ConfigError(where=where, given=given, wrong="it is the class of a method", fix=fix)
    pattern = str(method) if isinstance(method, str | Pattern) and ":" in str(method) else "2:4"
    fix = f'give a method with its pattern, such as nm.LBC("{pattern}")'
    raise ConfigError(where=where, given=given, wrong="it is no method", fix=fix)


def refuse_copy() -> NoReturn:
    """Refuse to copy or pickle a sparsifier that is attached.

    Raises:
        StateError: always.
    """
    raise StateError(
        where="Sparsifier",
        given="a copy or a pickle of one that is attached",
        wrong="it belongs to one model and one optimizer",
        fix="save its state_dict(), and load that into one that is attached",
    )


def check_model(model: nn.Module) -> None:
    """Refuse models whose weights cannot be seen.

    Raises:
        AttachError: FSDP1 (``FullyShardedDataParallel``), which lays weights end to end in flat parameters.
    """
    for name, module in model.named_modules():
        if type(module).__name__ == "FullyShardedDataParallel":
            raise AttachError(
                where=name or "the model",
                given="FullyShardedDataParallel (FSDP1)",
                wrong="its flat parameters have no rows and columns, and its shards cut groups apart",
                fix="shard with torch.distributed.fsdp.fully_shard (FSDP2; in the Trainer of transformers "
                'fsdp_config={"version": 2}), then make the sparsifier',
            )


def refuse_ranks(model: nn.Module, where: str, wrong: str, fix: str) -> None:
    """Refuse a model of which each rank would decide for itself what becomes of its copy.

    Raises:
        AttachError: it is in DDP.
    """
    if any(kind.__name__ == "DistributedDataParallel" for kind in type(model).__mro__):
        raise AttachError(where=where, given="DistributedDataParallel", wrong=wrong, fix=fix)


def refuse_second(several: Sequence[Optimizer]) -> NoReturn:
    """Refuse to attach a sparsifier that is attached."""
    raise AttachError(
        where="attach",
        given=_names(several),
        wrong="this sparsifier is attached already",
        fix="make a new one, or detach() first",
    )


def check_resume(resume: object) -> None:
    """Refuse an unknown ``resume=`` of attach.

    Raises:
        AttachError: it is neither None nor "anew".
    """
    if resume not in (None, "anew"):
        fix = 'leave it out, or write resume="anew" to begin where an optimizer has stepped without a sparsifier'
        raise AttachError(where="attach", given=f"resume={resume!r}", wrong="there is no such choice", fix=fix)


def refuse_unresumed(given: str) -> NoReturn:
    """Refuse to learn from the beginning where the optimizer goes on.

    Args:
        given: what was seen of the optimizer.

    Raises:
        AttachError: always.
    """
    raise AttachError(
        where="attach",
        given=given,
        wrong="a schedule would begin in the middle of a training run, or for a second time",
        fix="resume from an optimizer.state_dict() that was saved with the sparsifier attached; or attach with "
        'travels=False and load the sparsifier\'s own state_dict; or say resume="anew" to begin a schedule here',
    )


def check_weights(
    plan: Plan, model: nn.Module, method: Method, several: Sequence[Optimizer], elsewhere: Iterable[int]
) -> None:
    """Refuse weights that would not learn, or not alone.

    The verdict depends on nothing that differs between ranks, so that all of them stop, or none.

    Args:
        elsewhere: the ids of the weights of other living sparsifiers.

    Raises:
        AttachError: no weight, or weights that no optimizer holds or two do, that an optimizer steps in backward, that
            the model no longer has, that another sparsifier has, or whose shards cut groups.
    """
    for wrong, fix, rows in _reasons(plan, model, method, several, set(elsewhere)):
        if rows or not plan.sparse:
            where = rows[0].name if rows else "attach"
            raise AttachError(where=where, given=_names(several), wrong=wrong, fix=fix)


def _names(several: Sequence[Optimizer]) -> str:
    return ", ".join(type(optimizer).__name__ for optimizer in several)


def _reasons(
    plan: Plan, model: nn.Module, method: Method, several: Sequence[Optimizer], elsewhere: set[int]
) -> Iterable[Any]:
    """Every reason as (what is wrong, what to do, the weights that it is about)."""
    sparse = plan.sparse
    if not sparse:
        yield "the plan has no sparse weight", "print(sparsifier.plan) for the reasons, and change the rules", []
    yield (
        "the model has another parameter there now: it was sharded, wrapped or loaded after the sparsifier was made",
        "first shard or load the model, then make the optimizer and the sparsifier",
        [row for row in replaced(plan, model) if not is_sharded(row.parameter)],
    )
    in_backward = [row for row in sparse if getattr(row.parameter, "_in_backward_optimizers", None)]
    yield (
        "an optimizer steps this weight inside backward, where nothing can be learned before and cleared after it",
        "use an optimizer whose step() is called after backward",
        in_backward,
    )
    held = Counter(id(p) for each in several for group in each.param_groups for p in group["params"])
    missing = [row for row in sparse if id(row.parameter) not in held]
    yield (
        f"{'no optimizer holds' if len(several) > 1 else 'it does not hold'} {len(missing)} sparse weights, which "
        "would never learn",
        "give it all the model's parameters (after sharding or moving the model), or leave these dense",
        missing,
    )
    yield (
        "two of the optimizers hold it, and each would step it",
        "give every parameter to one of them",
        [row for row in sparse if held[id(row.parameter)] > 1],
    )
    yield (
        "another sparsifier is attached to this weight",
        "detach() that one first or delete its optimizer, or leave the weight to one of them with rules",
        [row for row in sparse if id(row.parameter) in elsewhere],
    )
    yield (
        f"{method.name} has to see whole weights, and this one is sharded",
        "use DDP, or a method that works on shards: LBC, SR-STE, MaskLLM, gradual, one-shot",
        [row for row in sparse if method.whole and _is_split(row.parameter)],
    )
    yield (
        f"{method.name} changes the backward pass of a layer, which a DTensor hides",
        "use DDP, or a method whose input gradient is the ordinary one",
        [row for row in sparse if method.other_backward and is_sharded(row.parameter)],
    )
    yield (
        "its shards cut groups apart",
        "shard another dimension than the inputs, or into multiples of M inputs, or leave the weight dense",
        [row for row in sparse if _is_cut(row)],
    )


def replaced(plan: Plan, model: nn.Module) -> list[PlanRow]:
    """The sparse weights in whose place the model has another parameter, or none."""
    named = parameters(model)
    return [row for row in plan.sparse if named.get(row.name) is not row.parameter]


def check_replaced(plan: Plan, model: nn.Module, without: Collection[str], whole: bool) -> None:
    """Refuse to go on with weights that the model no longer has.

    Args:
        without: the names of the weights that have no gradient in this step; only they can have been replaced.
        whole: whether that is all weights of the optimizer.

    Raises:
        AttachError: one was replaced since attach.
    """
    found = [row for row in replaced(plan, model) if row.name in without] if without else []
    # While its layer is gathered, a sharded weight goes by another parameter.
    names = [row.name for row in found if whole or not is_sharded(row.parameter)]
    if names:
        raise AttachError(
            where=names[0],
            given=f"a model with other parameters than at attach in {len(names)} places",
            wrong="the optimizer and the sparsifier hold the old ones, which get no gradient and are used by nobody",
            fix="first shard or load the model, then make the optimizer, the sparsifier, and attach",
        )


def check_capture(weight: Tensor) -> None:
    """Refuse a step that is being captured in a CUDA graph.

    Raises:
        AttachError: the stream of this weight's device is capturing.
    """
    if weight.is_cuda and torch.cuda.is_current_stream_capturing():
        raise AttachError(
            where="optimizer.step",
            given="a step inside the capture of a CUDA graph",
            wrong="every replay would repeat this one step of the schedule, and never remove anything",
            fix="capture forward and backward only, and call optimizer.step() behind the replay",
        )


def _is_split(weight: Tensor) -> bool:
    return is_sharded(weight) and any(chunks(weight, axis) for axis in range(weight.dim()))


def _is_cut(row: PlanRow) -> bool:
    """Whether some rank's shard ends inside a group: the shards of all ranks are looked at, not this one's alone."""
    cut = row.grouping
    widths = chunks(row.parameter, cut.axis)
    return bool(misfit(tuple(local(row.parameter).shape), cut.axis, cut.pattern)) or any(
        width % cut.pattern.m for width in widths
    )
