"""Which weights of a state a file packs, and with which pattern."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

from nmlearn.errors import PatternError, PlanError, ViolationError
from nmlearn.files.formats.encoding import Encoding, smallest
from nmlearn.maths.groups import Grouping, misfit
from nmlearn.maths.masks import nonzero_bits
from nmlearn.maths.pattern import Pattern
from nmlearn.maths.zeros import input_axis, tightest
from nmlearn.model.names import matches
from nmlearn.model.plan import Plan, Rule

WORTH = 0.9  # of the dense bytes: what a packed weight may take at most, unless a rule asks for it


def choose(
    state: Mapping[str, Tensor], tied: Mapping[str, str], axes: Mapping[str, int], rules: Mapping[str, Rule]
) -> dict[str, Grouping]:
    """The grouping of every weight to pack.

    Args:
        state: tensors by name.
        tied: further names -> the name that is stored.
        axes: the input axis of the weights whose layer defines it; the others' is guessed from their zeros.
        rules: a glob -> a pattern, None for dense, or a grouping; the last match wins. A weight without a rule is
            packed with its tightest pattern, if that saves a tenth of its bytes. Above a density of one half, most
            groups must keep N as well: scattered zeros, as in the middle of a schedule, also fulfil a pattern such as
            50:64, which nobody asked for.

    Raises:
        PlanError: a glob matches no weight.
        PatternError: a rule's pattern does not fit the weight's shape.
    """
    names = {name: [name] for name in state if name not in tied}
    for name, target in tied.items():
        names[target].append(name)
    names = {name: own for name, own in names.items() if state[name].ndim > 1 and state[name].is_floating_point()}
    _check_rules(rules, names.values())
    chosen = {}
    for name, own in names.items():
        matched = [glob for glob in rules if any(matches(glob, known) for known in own)]
        axis = next((axes[known] for known in own if known in axes), None)
        found = _by_rule(name, state[name], axis, rules[matched[-1]]) if matched else _by_zeros(state[name], axis)
        if found is not None:
            chosen[name] = found
    return chosen


def _by_zeros(weight: Tensor, axis: int | None) -> Grouping | None:
    kept_w = nonzero_bits(weight)
    axis = input_axis(kept_w) if axis is None else axis
    pattern = tightest(kept_w, axis)
    if pattern is None:
        return None
    encoding = Encoding(Grouping(pattern, axis), tuple(weight.shape), weight.dtype, smallest(pattern))
    meant = pattern.density <= 0.5 or _mostly_full(kept_w, encoding.grouping)
    return encoding.grouping if meant and encoding.nbytes <= WORTH * weight.nbytes else None


def _mostly_full(kept_w: Tensor, grouping: Grouping) -> bool:
    return float((grouping.view(kept_w).sum(-1) == grouping.pattern.n).double().mean()) > 0.5


def _by_rule(name: str, weight: Tensor, axis: int | None, rule: Rule) -> Grouping | None:
    if rule is None:
        return None
    if not isinstance(rule, Grouping):
        pattern = Pattern(rule)
        rule = Grouping(pattern, input_axis(nonzero_bits(weight), pattern) if axis is None else axis)
    shape = tuple(weight.shape)
    why = misfit(shape, rule.axis, rule.pattern) if 0 <= rule.axis < len(shape) else f"it has no axis {rule.axis}"
    if why:
        raise PatternError(where=name, given=shape, wrong=f"{rule.pattern} does not fit: {why}", fix="leave it dense")
    return rule


def check_plan(state: Mapping[str, Tensor], plan: Plan) -> None:
    """Refuse a state whose weights do not have the patterns of a plan.

    Raises:
        ViolationError: a weight is less sparse than planned; it names the first, and says how many are.
        PlanError: the state has no such weight, or one of another shape.
    """
    bad = []
    for row in plan.sparse:
        if row.name not in state or tuple(state[row.name].shape) != row.shape:
            wrong = f"the plan has a weight of shape {list(row.shape)} of this name, the state does not"
            raise PlanError(where=row.name, given="expect", wrong=wrong, fix="give the plan of this model's sparsifier")
        if why := row.grouping.violation(nonzero_bits(state[row.name])):
            bad.append((row.name, why))
    if bad:
        wrong = f"{bad[0][1]}; {len(bad)} of {len(plan.sparse)} planned weights are less sparse than planned"
        fix = "save after the schedule has ended and finalize() was called, or leave expect out"
        raise ViolationError(where=bad[0][0], given="expect", wrong=wrong, fix=fix)


def _check_rules(rules: Mapping[str, Rule], weights: Iterable[list[str]]) -> None:
    known = [name for names in weights for name in names]
    for glob, rule in rules.items():
        if not any(matches(glob, name) for name in known):
            raise PlanError(
                where=f"patterns[{glob!r}]",
                given=rule,
                wrong="it matches no floating-point weight of two or more dimensions",
                fix=f"names look like {', '.join(known[:6])}",
            )
