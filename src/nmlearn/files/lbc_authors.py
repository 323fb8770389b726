"""Checkpoints written by the code of LBC's authors (github.com/zyxxmu/LBC) -> ordinary weights with their zeros.

That code stores, for every sparse layer L of a state dict:

    L.weight      dense: the mask is applied in the forward pass only; [out, in] or [out, in, kh, kw]
    L.alpha       [groups, C]: a score for each combination; groups in the order out, kh, kw, in/M; 0 means removed
    L.index_list  [C, M]: the combinations as rows of zeros and ones

A combination whose score is not zero is alive, and a weight is in use while one of them contains it. Finished training
leaves one in each group. If several are alive, training had not ended, or momentum had moved removed scores off zero:
then the highest-scored one is used, which is what the removal of that code would leave.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from nmlearn.errors import ConfigError, FormatError, PatternError, StateError
from nmlearn.files.tensors import plain_state
from nmlearn.maths import masks
from nmlearn.maths.elimination import check_finite
from nmlearn.maths.groups import Grouping, misfit
from nmlearn.maths.pattern import LARGEST_M, Pattern
from nmlearn.maths.verify import verify

STATES = ("state_dict", "model")  # the entries with the weights in their checkpoints, of ResNets and of DeiT
AVERAGE = "model_ema"
WEIGHT, SCORES, TABLE = "weight", "alpha", "index_list"
_ENTRY = "give a state dict of tensors alone, or the entry that contains it: --state"
_NAMES = "the names of a layer's scores and of its table: --scores, --table"


@dataclass(frozen=True)
class Layer:
    """A sparse layer of a checkpoint.

    Attributes:
        name: of its weight.
        grouping: the pattern and the input axis.
        shape: of the weight.
        scores: float ``[G, C]``, groups in the order of :meth:`nmlearn.Grouping.rows`.
        table: bool ``[C, M]``.
    """

    name: str
    grouping: Grouping
    shape: tuple[int, ...]
    scores: Tensor
    table: Tensor

    @property
    def alive(self) -> Tensor:
        """Which combinations have not been removed: bool ``[G, C]``."""
        return self.scores != 0

    @property
    def undecided(self) -> int:
        """How many groups have several combinations alive."""
        return int((self.alive.sum(1) > 1).sum())

    @property
    def empty(self) -> int:
        """How many groups have none alive; their network computes with zeros there."""
        return int((~self.alive.any(1)).sum())

    def kept(self) -> Tensor:
        """The mask of the best combination alive, the first of equal ones: bool, of the weight's shape."""
        best = masks.top(self.scores.masked_fill(~self.alive, -math.inf), 1) & self.alive
        return self.grouping.from_rows(held(best, self.table), self.shape)


def held(chosen_gc: Tensor, t_cm: Tensor) -> Tensor:
    """The weights that a chosen combination contains: bool ``[G, M]``."""
    return chosen_gc.float() @ t_cm.float() > 0


def state_in(checkpoint: object, entry: str | None = None) -> dict[str, Tensor]:
    """The tensors of a model in a loaded checkpoint, without DataParallel's ``module.`` before names.

    Args:
        checkpoint: a state dict, or a dict that contains one as ``state_dict`` or ``model``.
        entry: which one; by default the first of these that exists.

    Raises:
        FormatError: it contains none, or in it something that is not a tensor with values in plain memory, a name that
            is not text, or two tensors of one name.
    """
    found, where = checkpoint, "checkpoint"
    if isinstance(checkpoint, Mapping):
        present = [key for key in (STATES if entry is None else [entry]) if key in checkpoint]
        found = checkpoint[present[0]] if present else checkpoint if entry is None else None
        where = present[0] if present else where
    if not isinstance(found, Mapping) or not any(isinstance(each, Tensor) for each in found.values()):
        given = _some(checkpoint) if isinstance(checkpoint, Mapping) else type(checkpoint).__name__
        wrong = f"no named tensors under {' or '.join(STATES) if entry is None else repr(entry)}"
        raise FormatError(where="checkpoint", given=given, wrong=wrong, fix=_ENTRY)
    try:
        named = plain_state(found)
    except StateError as error:
        raise FormatError(where=f"{where}: {error.where}", given=error.given, wrong=error.wrong, fix=_ENTRY) from None
    tensors: dict[str, Tensor] = {}
    for name, tensor in named.items():
        if tensors.setdefault(name.removeprefix("module."), tensor) is not tensor:
            wrong, fix = (
                "it is there with and without module. before it",
                "leave out the one that the model does not have",
            )
            raise FormatError(where=f"{where}: {name}", given="two tensors", wrong=wrong, fix=fix)
    return tensors


def _some(names: Iterable[object]) -> str:
    """The first names, for an error: of those that are not text the type, which has an end."""
    return ", ".join(f"{name:.60}" if isinstance(name, str) else type(name).__name__ for name in islice(names, 4))


def layers(
    state: Mapping[str, Tensor], *, scores: str = SCORES, table: str = TABLE, pattern: str | Pattern | None = None
) -> list[Layer]:
    """The sparse layers of a state dict.

    Args:
        state: tensors by name, as :func:`state_in` returns them.
        scores, table: the names of a layer's scores and of its table of combinations.
        pattern: the one that every table must have; by default read from the tables.

    Raises:
        ConfigError: scores and table do not have names of their own.
        FormatError: no scores, a layer without one of its three tensors, types or sizes that do not fit, an invalid
            table.
        PatternError: M does not divide the inputs of a layer, so that its groups are not N:M groups.
        StateError: scores that are not finite.
    """
    if len({scores, table, WEIGHT}) < 3:
        wrong = f"a layer has three tensors: {WEIGHT}, and two with other names"
        raise ConfigError(
            where="--scores and --table", given=f"{scores} and {table}", wrong=wrong, fix=f"give {_NAMES}"
        )
    found = {part: [n.removesuffix(f".{part}") for n in state if n.endswith(f".{part}")] for part in (scores, table)}
    if not found[scores]:
        given, wrong = f"names like {_some(state)}", f"none ends in .{scores}: no layer has scores"
        raise FormatError(where="checkpoint", given=given, wrong=wrong, fix="give the name of the scores: --scores")
    for part, names in found.items():
        for name in names:
            _check_complete(state, name, (WEIGHT, scores, table), part)
    asked = None if pattern is None else Pattern(pattern)
    return [_layer(state, name, scores, table, asked) for name in found[scores]]


def _check_complete(state: Mapping[str, Tensor], name: str, parts: tuple[str, ...], found: str) -> None:
    """Refuse a layer that lacks one of its tensors: without scores it would be taken for a dense one."""
    for part in parts:
        if f"{name}.{part}" not in state:
            wrong, fix = f"{name}.{found} needs it", f"give a complete checkpoint, or {_NAMES}"
            raise FormatError(where=f"{name}.{part}", given="nothing", wrong=wrong, fix=fix)


def _layer(state: Mapping[str, Tensor], name: str, scores: str, table: str, pattern: Pattern | None) -> Layer:
    weight, a_gc = (_floating(f"{name}.{part}", state[f"{name}.{part}"]) for part in (WEIGHT, scores))
    t_cm = _table(f"{name}.{table}", state[f"{name}.{table}"], pattern)
    cut = Grouping(Pattern(int(t_cm[0].sum()), t_cm.shape[1]), 1)
    shape = (weight.numel() // cut.pattern.m, len(t_cm))
    if tuple(a_gc.shape) != shape:
        wrong = f"{list(weight.shape)} weights and {len(t_cm)} combinations of {cut.pattern} need {list(shape)}"
        fix = f"give a complete checkpoint, or {_NAMES}"
        raise FormatError(where=f"{name}.{scores}", given=f"shape {list(a_gc.shape)}", wrong=wrong, fix=fix)
    _check_groups(f"{name}.{WEIGHT}", tuple(weight.shape), cut.pattern)
    a_gc = a_gc if a_gc.dtype == torch.float64 else a_gc.float()  # no score, however small, becomes a removed one
    check_finite(f"{name}.{scores}", a_gc, "scores")
    return Layer(f"{name}.{WEIGHT}", cut, tuple(weight.shape), a_gc, t_cm)


def _check_groups(where: str, shape: tuple[int, ...], pattern: Pattern) -> None:
    why = misfit(shape, 1, pattern)
    if why:
        wrong = f"{why}: its groups run over kernel positions, which no N:M kernel can use"
    elif len(shape) not in (2, 4):
        wrong = "their sparse layers are linear or convolve in two dimensions, so the order of its groups is not known"
    else:
        return
    raise PatternError(where=where, given=list(shape), wrong=wrong, fix="train this layer dense")


def _floating(where: str, tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        wrong, fix = "weights and scores are floating point", f"give a checkpoint of the authors' code, or {_NAMES}"
        raise FormatError(where=where, given=tensor.dtype, wrong=wrong, fix=fix)
    return tensor


def _table(where: str, table: Tensor, pattern: Pattern | None) -> Tensor:
    """The table as bool, checked."""
    wrong, given = "", f"{table.dtype} {list(table.shape)}"
    table = table if table.is_complex() else table.double()  # torch adds no small floats
    if table.dim() != 2 or not table.numel() or table.is_complex() or not bool(((table == 0) | (table == 1)).all()):
        wrong = "not a table of zeros and ones with one row per combination"
    elif table.shape[1] > LARGEST_M:
        wrong = f"its combinations are of {table.shape[1]} weights; a pattern has at most {LARGEST_M}"
    else:
        counts = {int(count) for count in table.sum(1)}
        if len(counts) > 1 or 0 in counts:
            wrong = f"its rows contain {' or '.join(map(str, sorted(counts)))} ones, not all the same N"
        elif pattern and (counts != {pattern.n} or table.shape[1] != pattern.m):
            wrong = f"its pattern is {counts.pop()}:{table.shape[1]}, not {pattern}"
    if wrong:
        fix = f"give a checkpoint of the authors' code, the pattern that it was trained with, and {_NAMES}"
        raise FormatError(where=where, given=given, wrong=wrong, fix=fix)
    return table != 0


@torch.no_grad()
def finished(
    state: Mapping[str, Tensor],
    found: list[Layer],
    *,
    averaged: Mapping[str, Tensor] | None = None,
    scores: str = SCORES,
    table: str = TABLE,
) -> dict[str, Tensor]:
    """The final model: an ordinary state dict with zeros in place, every group verified.

    Args:
        state: what the layers were found in.
        found: the layers.
        averaged: an average of the model (``model_ema``) whose weights are used, with the masks of ``state``.
            An average's scores are useless: they mix zeros with others.
        scores, table: as for :func:`layers`.

    Raises:
        FormatError: the average lacks a tensor, or has it in another shape, or a weight that is not floating point.
        ViolationError: a group keeps more than N; that would be a bug of this function.
    """
    dropped = {each.name.removesuffix(WEIGHT) + part for each in found for part in (scores, table)}
    source = state if averaged is None else averaged
    tensors = {name: _same(source, name, tensor) for name, tensor in state.items() if name not in dropped}
    for each in found:
        weight = _floating(each.name if averaged is None else f"{AVERAGE}: {each.name}", tensors[each.name])
        tensors[each.name] = masks.clear_(weight.clone(), masks.bits(each.kept()))
    verify({each.name: (tensors[each.name], each.grouping) for each in found}, 1.0)
    return tensors


def _same(source: Mapping[str, Tensor], name: str, like: Tensor) -> Tensor:
    tensor = source.get(name)
    if tensor is None or tensor.shape != like.shape:
        given = "nothing" if tensor is None else f"shape {list(tensor.shape)}"
        wrong, fix = f"the model has it, of shape {list(like.shape)}", "use the model's own weights"
        raise FormatError(where=f"{AVERAGE}: {name}", given=given, wrong=wrong, fix=fix)
    return tensor


def refuse_undecided(found: list[Layer]) -> None:
    """Refuse layers with undecided groups.

    Raises:
        StateError: a group of one of them does not have exactly one combination alive.
    """
    open_ = [each for each in found if each.undecided or each.empty]
    if open_:
        groups, most = sum(each.undecided + each.empty for each in open_), max(int(e.alive.sum(1).max()) for e in open_)
        raise StateError(
            where=open_[0].name,
            given=f"{groups:,} groups in {len(open_)} layers, with up to {most} combinations alive",
            wrong="they are not reduced to one combination each",
            fix="train to the end, or use the best-scored combinations",
        )
