"""What an allocation chooses from: the patterns that each weight may get."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from torch import nn

from nmlearn.errors import AttachError, PatternError, PlanError
from nmlearn.learn.calibration import Seen, seeable
from nmlearn.maths.groups import Grouping
from nmlearn.maths.pattern import Pattern
from nmlearn.methods.oneshot import OneShot
from nmlearn.model import plan as planning
from nmlearn.model.plan import PlanRow, Rule
from nmlearn.model.shards import is_sharded

PATTERNS = ("2:4", "1:4", "1:8", "1:16")
_ANY = Pattern(1, 1)
_SHOWN = 4  # weights that an error names


@dataclass(frozen=True)
class Options:
    """The weights of a model, and what each may get.

    Attributes:
        patterns: all of them, the densest first.
        rows: of the plan, by name.
        of: by name, what a weight may get: None, for dense, and the patterns that fit it where there is a choice; one
            entry where there is none.
        reasons: by name, why there is no choice, or not all of it.
    """

    patterns: tuple[Pattern, ...]
    rows: Mapping[str, PlanRow]
    of: Mapping[str, tuple[Grouping | None, ...]]
    reasons: Mapping[str, str]

    @property
    def free(self) -> list[PlanRow]:
        """The weights for which there is a choice."""
        return [self.rows[name] for name, some in self.of.items() if len(some) > 1]

    def open(self, name: str) -> bool:
        """Whether neither a rule nor the plan's defaults say what a weight is to be."""
        return self.rows[name].pattern == _ANY

    def without(self, unseen: Mapping[str, str]) -> Options:
        """The same with weights left dense, each for a reason."""
        free = {row.name for row in self.free}
        gone = {name: why for name, why in unseen.items() if name in free}
        return replace(self, of={**self.of, **dict.fromkeys(gone, (None,))}, reasons={**self.reasons, **gone})


def find(model: nn.Module, patterns: Iterable[str | Pattern] | None, rules: Mapping[str, Rule]) -> Options:
    """Plan a model with each pattern.

    Args:
        patterns: None for those of :data:`PATTERNS` that fit any weight.
        rules: what they are about is not chosen.

    Raises:
        PatternError: no pattern, or one that fits no weight.
        PlanError: rules that cannot be followed.
        AttachError: weights that are sharded, or without values.
    """
    given = _read(PATTERNS if patterns is None else patterns)
    base = _plan(model, _ANY, rules)
    free = [name for name, row in base.items() if row.pattern == _ANY]
    _refuse_sharded(base[name] for name in free)
    plans = {pattern: _plan(model, pattern, rules) for pattern in given}
    fitting = [pattern for pattern, rows in plans.items() if any(rows[name].pattern for name in free)]
    for pattern in given if free and patterns is not None else ():
        if pattern not in fitting:
            _refuse_unfit(pattern, [plans[pattern][name] for name in free])
    of: dict[str, tuple[Grouping | None, ...]] = {}
    reasons: dict[str, str] = {}
    for name, row in base.items():
        tried = {pattern: rows[name] for pattern, rows in plans.items()} if name in free else {}
        of[name], reasons[name] = _of(row, tried)
    return Options(tuple(fitting), base, of, reasons)


def _plan(model: nn.Module, pattern: Pattern, rules: Mapping[str, Rule]) -> dict[str, PlanRow]:
    return {row.name: row for row in planning.plan(model, OneShot(pattern), rules).rows}


def _of(row: PlanRow, tried: Mapping[Pattern, PlanRow]) -> tuple[tuple[Grouping | None, ...], str]:
    """The options of a weight, and what is to be said of them; planned with each pattern where there is a choice."""
    if row.pattern is None:
        return (None,), row.reason
    if not tried:
        return (row.grouping,), "a rule"
    unfit: dict[str, list[str]] = {}
    for pattern, other in tried.items():
        if other.pattern is None:
            unfit.setdefault(other.reason, []).append(str(pattern))
    said = [row.reason, *(f"not {', '.join(some)}: {why}" for why, some in unfit.items())]
    fit = (other.grouping for other in tried.values() if other.pattern is not None)
    return (None, *fit), "; ".join(filter(None, said))


def seen_only(model: nn.Module, options: Options, seen: Seen | None) -> Options:
    """The same with dense those weights whose inputs cannot be seen, or were not."""
    if seen is None:
        _, unseen = seeable(model, options.free)
        return options.without(unseen)
    missing = [row.name for row in options.free if row.name not in seen]
    return options.without({name: seen.unseen.get(name, "calibration was not asked to see it") for name in missing})


def check_some(options: Options) -> None:
    """Refuse a model without a choice.

    Raises:
        PlanError: it names the first weights and why.
    """
    if options.free:
        return
    rows = list(options.rows)
    said = "; ".join(f"{name}: {options.reasons[name]}" for name in rows[:_SHOWN])
    more = f"; and {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else ""
    raise PlanError(
        where="allocate",
        given=", ".join(map(str, options.patterns)),
        wrong=f"there is no weight to choose a pattern for: {said}{more}" if rows else "the model has no weights",
        fix="give patterns whose M divides the inputs of layers, or other rules; print(sparsifier.plan) shows all",
    )


def _read(patterns: Iterable[str | Pattern]) -> tuple[Pattern, ...]:
    given = [patterns] if isinstance(patterns, str | Pattern) else list(patterns)
    read = list(dict.fromkeys(map(Pattern, given)))
    dense = [pattern for pattern in read if pattern.n == pattern.m]
    if dense or not read:
        wrong = "it keeps everything" if dense else "there is nothing to choose from"
        fix = "leave it out: dense is always a choice" if dense else 'give some, such as ["2:4", "1:4"]'
        raise PatternError(where="patterns", given=dense[0] if dense else read, wrong=wrong, fix=fix)
    return tuple(sorted(read, key=lambda pattern: (-pattern.density, -pattern.m)))


def _refuse_unfit(pattern: Pattern, rows: list[PlanRow]) -> None:
    wrong = f"it fits no weight: {'; '.join(f'{row.name}: {row.reason}' for row in rows[:_SHOWN])}"
    raise PatternError(where="patterns", given=pattern, wrong=wrong, fix="give patterns whose M divides the inputs")


def _refuse_sharded(rows: Iterable[PlanRow]) -> None:
    for row in rows:
        if is_sharded(row.parameter) or row.parameter.is_meta:
            wrong = "it is sharded or lies on the meta device, and its values are needed"
            fix = "allocate for the whole model, then shard it"
            raise AttachError(where=row.name, given=row.kind, wrong=wrong, fix=fix)
