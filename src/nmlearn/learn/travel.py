"""A sparsifier's state in its optimizer's ``state_dict``, so that scripts which save and restore optimizers resume it.

It stands in the first *saved* parameter group, under a key of ours and the name of the sparsifier's first weight, in
which several on one optimizer differ. torch keeps keys that it does not know: an optimizer that is loaded before attach
has the state in its live group, where attach finds it and takes it out; one that is loaded after attach hands it over
through the hooks. A script without nmlearn loads such a state as any other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch.optim import Optimizer

KEY = "nmlearn"


def waiting(optimizer: Optimizer, name: str) -> dict[str, Any] | None:
    """The state in an optimizer that was loaded before attach; None where there is none."""
    found: dict[str, Any] | None = (optimizer.param_groups[0].get(KEY) or {}).get(name)
    return found


def take_out(optimizer: Optimizer, name: str) -> None:
    """Take out the state that was :func:`waiting`."""
    group = optimizer.param_groups[0]
    _put(group, {key: state for key, state in group[KEY].items() if key != name})


def hooks(
    optimizer: Optimizer,
    name: str,
    state: Callable[[], dict[str, Any]],
    check: Callable[[Mapping[str, Any]], None],
    load: Callable[[Mapping[str, Any]], None],
) -> list[Any]:
    """Hooks that let the optimizer's state include another one.

    Args:
        name: what the state is found by.
        state, load: the state, and what takes it.
        check: refuses a state that does not belong here, before the optimizer has changed.
    """
    held: list[Mapping[str, Any]] = []

    def save(_: Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
        groups = list(saved["param_groups"])
        groups[0] = groups[0] | {KEY: {**(groups[0].get(KEY) or {}), name: state()}}
        return saved | {"param_groups": groups}

    def hold(_: Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
        held.clear()
        groups = [dict(group) for group in saved["param_groups"]]
        states = dict(groups[0].get(KEY) or {}) if groups else {}
        # Version 0.1 of the integration with timm wrote it next to the groups.
        found = states.pop(name, None) or saved.get(f"{KEY}:{name}")
        if found is None:
            return saved
        check(found)
        held.append(found)
        _put(groups[0], states)
        return {key: value for key, value in saved.items() if key != f"{KEY}:{name}"} | {"param_groups": groups}

    def take(_: Optimizer) -> None:
        for found in held:
            load(found)
        held.clear()

    return [
        optimizer.register_state_dict_post_hook(save),
        optimizer.register_load_state_dict_pre_hook(hold),
        optimizer.register_load_state_dict_post_hook(take),
    ]


def _put(group: dict[str, Any], states: dict[str, Any]) -> None:
    """Leave the states of others, and no key where there are none."""
    group.pop(KEY, None)
    if states:
        group[KEY] = states
