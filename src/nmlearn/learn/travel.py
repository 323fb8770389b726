"""A sparsifier's state in its optimizer's ``state_dict``, so that scripts which save and restore optimizers resume it.

It stands in the first *saved* parameter group, under a key of ours and the name of the sparsifier's first weight, in
which several on one optimizer differ. torch keeps keys that it does not know: an optimizer that is loaded before attach
has the state in its live group, where attach finds it and takes it out; one that is loaded after attach hands it over
through the hooks. A script without nmlearn loads such a state as any other.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from typing import Any, Protocol

from torch.optim import Optimizer

from nmlearn.learn import compact
from nmlearn.learn.optimizers import with_part

KEY = "nmlearn"
# It fills what a template has, and fails where a checkpoint lacks a key or has one more.
_BY_TEMPLATE = "torch.distributed.checkpoint"


class Traveller(Protocol):
    """What has a state that travels."""

    def state_dict(self) -> dict[str, Any]:
        """The state."""

    def check(self, saved: Mapping[str, Any]) -> None:
        """Refuse a state that does not belong here, before anything has changed."""

    def load(self, saved: Mapping[str, Any]) -> None:
        """Go on from a state."""

    def missed(self, optimizer: Optimizer) -> None:
        """The optimizer was loaded without a state."""


def waiting(optimizer: Optimizer, names: Collection[str]) -> Any:
    """The state in an optimizer that was loaded before attach; None where there is none.

    Args:
        names: of the sparsifier's weights; any of them finds it, so that one of another plan is refused.
    """
    states = _states(optimizer.param_groups[0])
    place = _place(states, names)
    return None if place is None else states[place]


def take_out(optimizer: Optimizer, names: Collection[str]) -> None:
    """Take out the state that was :func:`waiting`."""
    states = _states(optimizer.param_groups[0])
    if (place := _place(states, names)) is not None:
        del states[place]
    for each in with_part(optimizer):
        _put(each.param_groups[0], states)


def hooks(optimizer: Optimizer, names: Collection[str], traveller: Traveller) -> list[Any]:
    """Hooks that let the optimizer's state include another one.

    Args:
        names: of the weights that the state is about, the first of them the one that it is stored by.
    """
    held: list[Mapping[str, Any]] = []

    def save(_: Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
        if _asked_by_template():
            return saved
        groups = list(saved["param_groups"])
        states = _states(groups[0]) | {next(iter(names)): compact.packed(traveller.state_dict())}
        groups[0] = groups[0] | {KEY: states}
        return saved | {"param_groups": groups}

    def hold(loading: Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
        held.clear()
        groups = [dict(group) for group in saved["param_groups"]]
        states = _states(groups[0]) if groups else {}
        # Version 0.1 of the integration with timm wrote it next to the groups.
        older = {key: state for key, state in saved.items() if isinstance(key, str) and key.startswith(f"{KEY}:")}
        found, place = states | older, _place(states | older, names)
        if place is None:
            return saved
        traveller.check(found[place])
        held.append(found[place])
        states.pop(place, None)
        _put(groups[0], states)
        if with_part(loading)[1:]:  # ZeroRedundancyOptimizer copies from what it was given again, after the hooks
            saved["param_groups"][0] = dict(groups[0])
        return {key: value for key, value in saved.items() if key != place} | {"param_groups": groups}

    def take(loaded: Optimizer) -> None:
        for found in held:
            traveller.load(found)
        if not held:
            traveller.missed(loaded)
        held.clear()

    return [
        optimizer.register_state_dict_post_hook(save),
        optimizer.register_load_state_dict_pre_hook(hold),
        optimizer.register_load_state_dict_post_hook(take),
    ]


def _states(group: Mapping[str, Any]) -> dict[str, Any]:
    """The states in a parameter group, by the names that they are stored by."""
    states = group.get(KEY)
    return dict(states) if isinstance(states, Mapping) else {}


def _place(states: Mapping[str, Any], names: Collection[str]) -> str | None:
    """The key of the state that is about any of these weights."""
    for key, state in states.items():
        weights = state.get("weights") if isinstance(state, Mapping) else None
        shares = isinstance(weights, Mapping) and not weights.keys().isdisjoint(names)
        if shares or key.removeprefix(f"{KEY}:") in names:
            return key
    return None


def _put(group: dict[str, Any], states: dict[str, Any]) -> None:
    """Leave the states of others, and no key where there are none."""
    group.pop(KEY, None)
    if states:
        group[KEY] = states


def _asked_by_template() -> bool:
    """Whether torch.distributed.checkpoint asks for the optimizer's state."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__", "").startswith(_BY_TEMPLATE):
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False
