"""The plan: which weights become sparse, with which pattern, and why the others stay dense."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from nmlearn.errors import PatternError, PlanError
from nmlearn.maths.groups import Grouping, misfit
from nmlearn.maths.pattern import Pattern
from nmlearn.methods.method import Method
from nmlearn.model import layers
from nmlearn.model import peft_names as peft
from nmlearn.model.names import matches, plain_name, unwrap

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


@dataclass(frozen=True)
class _Found:
    """A parameter of two or more dimensions and where it was found first.

    ``called`` is what rules may call it: its names, and those it had before PEFT. ``inside`` are the same of the place
    of :func:`nmlearn.model.peft_names.places` that it is in, and ``aside`` why no pattern is meant for that.
    """

    names: tuple[str, ...]
    kinds: tuple[str, ...]
    axes: tuple[int | str, ...]
    parameter: nn.Parameter
    owner: nn.Module
    called: tuple[str, ...]
    inside: tuple[str, ...]
    aside: str

    def meant(self, glob: str) -> bool:
        """Whether a rule is about it. One about a layer is not about the adapter that was put into the layer."""
        return any(matches(glob, name) for name in self.called) and not any(matches(glob, name) for name in self.inside)


def plan(model: nn.Module, method: Method, rules: Mapping[str, Rule] | None = None) -> Plan:
    """Decide for every weight of two or more dimensions.

    Args:
        model: any module; DDP, DataParallel, torch.compile, AveragedModel and timm's EMA wrappers are looked through.
        method: gives the pattern where no rule does.
        rules: a glob on a module's qualified name (then all in it) or on a weight's, to a pattern, None for dense, or a
            :class:`Grouping` where the input axis must be said. The last match wins, over the defaults too: the first
            convolution and the output layer stay dense, as in the paper. Of a model with adapters of PEFT, the names
            from before PEFT match as well; an adapter's own weights stay dense unless a rule names them (``*lora_A*``).

    Raises:
        PlanError: a rule matches nothing, or gives a pattern to no weight that it fits.
    """
    found = list(_find(model))
    read = {glob: _read(glob, rule) for glob, rule in (rules or {}).items()}
    defaults = _dense_by_default(found)
    rows: list[PlanRow] = []
    hits: dict[str, list[PlanRow]] = {glob: [] for glob in read}
    decided: dict[str, list[PlanRow]] = {glob: [] for glob in read}
    for item in found:
        matched = [glob for glob in read if item.meant(glob)]
        rows.append(_decide(item, method, read, matched, defaults))
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
    item: _Found,
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
    return replace(
        row,
        pattern=grouping.pattern,
        grouping=grouping,
        elimination=method.eliminates(grouping.pattern),
        combinations=grouping.pattern.combinations,
        reason=f"tied: {', '.join(item.names)}" if len(item.names) > 1 else "",
    )


def _axis(item: _Found, named: bool) -> int | str:
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
        return "3-D weight of a layer nmlearn does not know: name it in a rule to group its last dimension"
    return axis % item.parameter.dim()


def input_axes(model: nn.Module) -> dict[str, int]:
    """The axis that runs along the inputs, for every weight, under each of its names, whose layers say it."""
    axes = {item.names: _axis(item, named=False) for item in _find(model)}
    return {name: axis for names, axis in axes.items() if isinstance(axis, int) for name in names}


def _refusal(item: _Found, grouping: Grouping) -> str:
    if not item.parameter.is_floating_point():
        return f"{item.parameter.dtype} is not a floating-point type"
    if not item.parameter.requires_grad:
        return "frozen: requires_grad is False"
    if layers.standardizes(item.owner):
        return "its layer standardizes the weight in forward, which makes zeros non-zero"
    return misfit(tuple(item.parameter.shape), grouping.axis, grouping.pattern)


def _find(model: nn.Module) -> Iterator[_Found]:
    """Every parameter of two or more dimensions once, in the model's order, with all its names."""
    by_id: dict[int, _Found] = {}
    inner = unwrap(model)
    in_peft = peft.wrapped(inner)
    places = {plain_name(path): why for path, why in peft.places(inner).items()}
    for path, module in inner.named_modules(remove_duplicate=False):
        for own, parameter in module._parameters.items():
            if isinstance(parameter, nn.parameter.UninitializedParameter):
                raise PlanError(
                    where=f"{path}.{own}",
                    given="an uninitialized lazy parameter",
                    wrong="its shape is not known yet",
                    fix="run the model once before planning",
                )
            if parameter is None or parameter.dim() < 2:
                continue
            name, axis = plain_name(f"{path}.{own}" if path else own), layers.input_axis(module, own, parameter)
            called: tuple[str, ...] = (name, peft.original_name(name)) if in_peft else (name,)
            seen = by_id.get(id(parameter))
            if seen is None:
                place = peft.owner(name, places)
                inside = () if place is None else (place, peft.original_name(place))
                aside = "" if place is None else places[place]
                kind = type(module).__name__
                by_id[id(parameter)] = _Found((name,), (kind,), (axis,), parameter, module, called, inside, aside)
            else:
                kinds = (*seen.kinds, type(module).__name__)
                names, called = (*seen.names, name), (*seen.called, *called)
                by_id[id(parameter)] = replace(seen, names=names, called=called, kinds=kinds, axes=(*seen.axes, axis))
    yield from by_id.values()


def _dense_by_default(found: list[_Found]) -> dict[str, str]:
    """The first convolution and the output layer, as in the paper (LBC keeps both dense), and what PEFT added."""
    reasons = {item.names[0]: item.aside for item in found if item.aside}
    own = [item for item in found if not item.aside]
    for item in own:
        if isinstance(item.owner, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            reasons[item.names[0]] = "first convolution: dense by default, as in the paper"
            break
    linear = [item for item in own if isinstance(item.owner, nn.Linear)]
    if linear and not any(_same_place(linear[-1], other) for other in linear[:-1]):
        reasons[linear[-1].names[0]] = "output layer: dense by default, as in the paper"
    return reasons


def _same_place(a: _Found, b: _Found) -> bool:
    """Whether two layers stand at the same place of repeated blocks; an output layer has no such twin."""
    (*block, layer, _), (*others, other, _) = (["", *item.names[0].split(".")] for item in (a, b))
    numbered = [part for part in block if part.isdecimal()]
    unnumbered = [[part for part in parts if not part.isdecimal()] for parts in (block, others)]
    alike = layer == other and len(block) == len(others) and unnumbered[0] == unnumbered[1]
    return bool(numbered) and alike and a.parameter.shape == b.parameter.shape


def _names(glob: str, item: _Found) -> bool:
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
        raise PlanError(
            where=f"rules[{glob!r}]",
            given=rule,
            wrong="; ".join(f"{row.name}: {row.reason}" for row in decided[:6]),
            fix="choose a pattern that fits, or leave these weights dense",
        )
