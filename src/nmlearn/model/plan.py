"""The plan: which weights become sparse, with which pattern, and why the others stay dense."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from nmlearn.errors import PatternError, PlanError
from nmlearn.maths.groups import Grouping, misfit
from nmlearn.maths.pattern import Pattern
from nmlearn.methods.method import Method
from nmlearn.model import layers, memory, trial
from nmlearn.model.dense import dense_by_default
from nmlearn.model.executed import execute
from nmlearn.model.found import Found, find
from nmlearn.model.names import plain_name

Rule = str | Pattern | Grouping | None


@dataclass(frozen=True)
class PlanRow:
    """One weight of the model: sparse with a pattern, or left dense (``pattern is None``) for a reason."""

    name: str
    kind: str
    shape: tuple[int, ...]
    pattern: Pattern | None
    reason: str
    elimination: str = ""
    combinations: int | None = None
    weights: int = 0
    grouping: Grouping = field(default=Grouping(Pattern(1, 1), 0), repr=False)
    parameter: nn.Parameter = field(default_factory=lambda: nn.Parameter(), repr=False, compare=False)


@dataclass(frozen=True)
class Plan:
    """What a sparsifier will do to each weight of two or more dimensions; ``str(plan)`` is a table."""

    rows: tuple[PlanRow, ...]

    @property
    def sparse(self) -> tuple[PlanRow, ...]:
        """The rows with a pattern."""
        return tuple(row for row in self.rows if row.pattern is not None)

    def to_json(self) -> list[dict[str, Any]]:
        """The rows as plain values, for files."""
        keys = ("name", "kind", "reason", "elimination", "combinations", "weights")
        return [
            {key: getattr(row, key) for key in keys}
            | {"shape": list(row.shape), "pattern": str(row.pattern) if row.pattern else None}
            | {"axis": row.grouping.axis if row.pattern else None}
            for row in self.rows
        ]

    def __str__(self) -> str:
        head = ("weight", "layer", "shape", "pattern", "elimination", "reason")
        lines = [
            (r.name, r.kind, "x".join(map(str, r.shape)), str(r.pattern or "dense"), r.elimination, r.reason)
            for r in self.rows
        ]
        widths = [max(len(line[i]) for line in (head, *lines)) for i in range(len(head))]
        table = [" ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) for line in (head, *lines)]
        table.insert(1, " ".join("-" * w for w in widths))
        return "\n".join([*(line.rstrip() for line in table), self.summary()])

    def summary(self) -> str:
        """One sentence: how much of the model is sparse."""
        some, every = sum(r.weights for r in self.sparse), sum(r.weights for r in self.rows)
        share = 100 * some / every if every else 0.0
        return f"{len(self.sparse)} of {len(self.rows)} weights sparse, {some:,} of {every:,} values ({share:.1f} %)"


def plan(model: nn.Module, method: Method, rules: Mapping[str, Rule] | None = None, example: Any | None = None) -> Plan:
    """Decide for every weight of two or more dimensions.

    Args:
        model: any module; DDP, DataParallel, torch.compile, AveragedModel and timm's EMA wrappers are looked through.
        method: gives the pattern where no rule does.
        rules: a glob on a module's qualified name (then all in it) or on a weight's, to a pattern, None for dense, or a
            :class:`Grouping` where the input axis must be said. The last match wins, over the defaults too: the first
            convolution and the output layer stay dense, as in the paper. Of a model with adapters of PEFT, the names
            from before PEFT match as well; an adapter's own weights stay dense unless a rule names them (``*lora_A*``).
        example: inputs of the model: a tensor, a tuple of arguments or a dict of keyword arguments. The model is run on
            it once, and stays as it was, to see which layers its output comes from and which convolution is called
            first. Without one, output layers are known by their names, or else the last layer is taken for one.

    Raises:
        ConfigError: an example that the model's forward refuses.
        PlanError: a rule matches nothing, or gives a pattern to no weight that it fits.
    """
    found = list(find(model))
    overlaps = memory.shared(model.named_parameters())
    read = {glob: _read(glob, rule) for glob, rule in (rules or {}).items()}
    defaults = dense_by_default(found, None if example is None else execute(model, found, example))
    rows: list[PlanRow] = []
    hits: dict[str, list[PlanRow]] = {glob: [] for glob in read}
    decided: dict[str, list[PlanRow]] = {glob: [] for glob in read}
    for item in found:
        matched = [glob for glob in read if item.meant(glob)]
        rows.append(_unless_shared(_decide(item, method, read, matched, defaults), overlaps))
        for glob in matched:
            hits[glob].append(rows[-1])
        if matched:
            decided[matched[-1]].append(rows[-1])
    for glob, rule in read.items():
        _check_rule(glob, rule, hits[glob], decided[glob], rows)
    return Plan(tuple(rows))


def _read(glob: str, rule: Rule) -> Pattern | Grouping | None:
    if rule is None or isinstance(rule, Grouping):
        return rule
    try:
        return Pattern(rule)
    except PatternError as error:
        raise PatternError(
            where=f"rules[{glob!r}]", given=error.given, wrong=error.wrong, fix=f"{error.fix}, or None for dense"
        ) from None


def _decide(
    item: Found,
    method: Method,
    rules: dict[str, Pattern | Grouping | None],
    matched: list[str],
    defaults: dict[str, str],
) -> PlanRow:
    row = PlanRow(
        name=item.names[0],
        kind=item.kinds[0],
        shape=tuple(item.parameter.shape),
        pattern=None,
        reason="",
        weights=item.parameter.numel(),
        parameter=item.parameter,
    )
    rule = rules[matched[-1]] if matched else Pattern(method.pattern)
    if rule is None:
        return replace(row, reason=f"rule {matched[-1]!r}")
    if not matched and row.name in defaults:
        return replace(row, reason=defaults[row.name])
    if isinstance(rule, Pattern):
        axis = _axis(item, bool(matched) and _names(matched[-1], item))
        if isinstance(axis, str):
            return replace(row, reason=axis)
        rule = Grouping(rule, axis)
    grouping = rule
    why = _refusal(item, grouping)
    if why:
        return replace(row, reason=why)
    tried = [trial.keeps_zeros(owner) for owner in item.owners if trial.has_own_forward(owner)]
    if False in tried:
        return replace(
            row, reason="its layer changes or standardizes the weight in forward, which makes zeros non-zero"
        )
    notes = [f"tied: {', '.join(item.names)}"] * (len(item.names) > 1)
    notes += ["its own forward could not be tried"] * (None in tried)
    return replace(
        row,
        pattern=grouping.pattern,
        grouping=grouping,
        elimination=method.eliminates(grouping.pattern),
        combinations=grouping.pattern.combinations,
        reason="; ".join(notes),
    )


def _unless_shared(row: PlanRow, overlaps: Mapping[int, str]) -> PlanRow:
    """Dense, where the step of an optimizer on another parameter would overwrite its zeros."""
    other = overlaps.get(id(row.parameter))
    if row.pattern is None or other is None:
        return row
    reason = f"shares its memory with another parameter, {plain_name(other)}: tie the Parameter itself, not its .data"
    dense = replace(row, pattern=None, reason=reason, elimination="", combinations=None)
    return replace(dense, grouping=Grouping(Pattern(1, 1), 0))


def _axis(item: Found, named: bool) -> int | str:
    """The input axis that all uses of a parameter agree on, or why it stays dense."""
    said = [axis for axis in item.axes if isinstance(axis, str)]
    if said:
        tied = f"tied with {', '.join(item.names[1:])}, " if len(item.names) > 1 else ""
        return tied + said[0]
    if len(set(item.axes)) > 1:
        return f"tied: {', '.join(item.names)} run along different axes"
    axis = item.axes[0]
    assert isinstance(axis, int)
    if axis < 0 and not named:
        return layers.AXIS_UNKNOWN
    return axis % item.parameter.dim()


def input_axes(model: nn.Module) -> dict[str, int]:
    """The axis that runs along the inputs, for every weight, under each of its names, whose layers say it."""
    axes = {item.names: _axis(item, named=False) for item in find(model)}
    return {name: axis for names, axis in axes.items() if isinstance(axis, int) for name in names}


def _refusal(item: Found, grouping: Grouping) -> str:
    if not item.parameter.is_floating_point():
        return f"{item.parameter.dtype} is not a floating-point type"
    if not item.parameter.requires_grad:
        return "frozen: requires_grad is False"
    whys = (layers.straddles(owner, grouping) for owner in item.owners)
    return misfit(tuple(item.parameter.shape), grouping.axis, grouping.pattern) or next(filter(None, whys), "")


def _names(glob: str, item: Found) -> bool:
    """Whether a glob means this very weight, and not everything there is."""
    return bool(glob.strip("*")) and any(fnmatch.fnmatchcase(name, glob) for name in item.called)


def _check_rule(
    glob: str, rule: Pattern | Grouping | None, hits: list[PlanRow], decided: list[PlanRow], rows: list[PlanRow]
) -> None:
    """A rule must match something, and one with a pattern must make something sparse."""
    if not hits:
        known = ", ".join(row.name for row in rows[:6])
        raise PlanError(
            where=f"rules[{glob!r}]",
            given=rule,
            wrong="it matches no module and no weight of two or more dimensions",
            fix=f"names look like {known}{' ...' if len(rows) > 6 else ''}",
        )
    if rule is not None and decided and all(row.pattern is None for row in decided):
        unknown = [row.name for row in decided if row.reason == layers.AXIS_UNKNOWN]
        fix = "choose a pattern that fits, or leave these weights dense"
        if unknown:
            fix = (
                f"write {unknown[0]!r}: nm.Grouping({str(rule)!r}, axis), "
                "with axis 1 for [experts, in, out] and 2 for [experts, out, in]"
            )
        raise PlanError(
            where=f"rules[{glob!r}]",
            given=rule,
            wrong="; ".join(f"{row.name}: {row.reason}" for row in decided[:6]),
            fix=fix,
        )
