"""The parts of a checkpoint: has each of them the form that this run needs?

A checksum tells that a file is what was written, not that it was written by nmlearn: what stands in a part is checked
before it is used. Every check raises a StateError that names the file and the part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor

from nmlearn.errors import StateError
from nmlearn.learn.states import equal, shown

_DEEPEST = 50  # no configuration nests deeper
# What an optimizer of optim.py keeps of each weight.
_KEPT = {torch.optim.SGD: {"momentum_buffer"}, torch.optim.AdamW: {"step", "exp_avg", "exp_avg_sq"}}


def refuse(where: object, given: str, wrong: str, fix: str = "") -> NoReturn:
    """Refuse a checkpoint.

    Args:
        where: its path.

    Raises:
        StateError: always.
    """
    fix = fix or "--resume none starts over, --resume PATH resumes from another checkpoint"
    raise StateError(where=str(where), given=given, wrong=wrong, fix=fix) from None


def check_values(where: object, what: str, saved: object, right: Mapping[str, Callable[[object], bool]]) -> None:
    """Refuse a part that lacks a value, or has one that is not right."""
    saved = mapping(where, what, saved)
    for key, is_right in right.items():
        if key not in saved:
            refuse(where, f"{what} without {key}", "a checkpoint has it")
        if not is_right(saved[key]):
            refuse(where, f"{what} with {key} = {shown(saved[key])}", "no run writes this")


def mapping(where: object, what: str, saved: object) -> Mapping[Any, Any]:
    """A part that is a mapping."""
    if not isinstance(saved, Mapping):
        refuse(where, f"{what} that is {shown(saved)}", "it is no mapping")
    return saved


def is_plain(value: object, depth: int = 0) -> bool:
    """Whether a value is text, a number, None, or a list or a mapping of such values by text."""
    if depth > _DEEPEST:
        return False
    if isinstance(value, dict):
        return all(isinstance(key, str) and is_plain(inner, depth + 1) for key, inner in value.items())
    if isinstance(value, list):
        return all(is_plain(inner, depth + 1) for inner in value)
    return isinstance(value, int | float | str | None)


def check_same(where: object, what: str, saved: object, now: Mapping[str, Any]) -> None:
    """Refuse a part whose entries are not those of now, naming the first that differs."""
    saved = mapping(where, what, saved)
    for key in sorted(saved.keys() | now.keys(), key=shown):
        if not equal(saved.get(key), now.get(key)):
            refuse(where, f"{what} with {shown(key)} = {shown(saved.get(key))}", f"now {shown(key)} is {now.get(key)}")


def check_tensors(where: object, what: str, saved: object, now: Mapping[str, Any]) -> None:
    """Refuse a part whose tensors have other names, shapes or types than those of now."""
    saved = mapping(where, what, saved)
    check_same(where, what, {k: _form(v) for k, v in saved.items()}, {k: _form(v) for k, v in now.items()})


def _form(value: object) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    odd = f" {value.layout}" if value.layout != torch.strided else ""
    return f"{value.dtype} {list(value.shape)}{odd}{' without values' if value.is_meta else ''}"


def optimizer_state(where: object, saved: object, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """A saved state of an optimizer, as it can be loaded: the values of its groups come from the configuration.

    Args:
        saved: the part of the checkpoint.
        optimizer: the one that is to load it.
    """
    what, now = "an optimizer", optimizer.state_dict()
    saved = mapping(where, what, saved)
    groups = saved.get("param_groups")
    if not isinstance(groups, list):
        refuse(where, f"{what} whose groups are {shown(groups)}", "they are no list")
    check_same(where, what, _forms(where, groups), _forms(where, now["param_groups"]))
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    state = mapping(where, f"{what} whose state", saved.get("state"))
    for number, kept in state.items():
        if not isinstance(number, int) or number not in range(len(weights)):
            refuse(where, f"{what} with a state of weight {shown(number)}", f"it has {len(weights)} weights")
        _check_kept(where, f"{what} whose state of weight {number}", kept, weights[number], _KEPT[type(optimizer)])
    return {"state": dict(state), "param_groups": now["param_groups"]}


def _forms(where: object, groups: Iterable[object]) -> dict[str, str]:
    """The structure of an optimizer's groups."""
    forms = {}
    for number, each in enumerate(groups):
        group = mapping(where, f"an optimizer whose group {number}", each)
        weights = group.get("params")
        if not isinstance(weights, list):
            refuse(where, f"an optimizer with group {number} of {shown(weights)}", "its weights are no list")
        forms[f"group {number}"] = f"{len(weights)} weights, {', '.join(sorted(map(shown, group)))}"
    return forms


def _check_kept(where: object, what: str, kept: object, weight: Tensor, names: set[str]) -> None:
    """Refuse what an optimizer cannot go on with: it keeps tensors like the weight, and its step."""
    kept = mapping(where, what, kept)
    if not kept:  # no step yet
        return
    right = {name: torch.zeros((), device="cpu") if name == "step" else weight for name in names}
    check_tensors(where, what, kept, right)
    if "step" in names and not 0 <= float(kept["step"]) < float("inf"):
        refuse(where, f"{what} has the step {float(kept['step'])}", "it counts steps")


def check_random(where: object, states: object) -> None:
    """Refuse what are no states of random generators: one of each process, uint8 [bytes]."""
    if not isinstance(states, list) or not states:
        refuse(where, f"random generators that are {shown(states)}", "they are no list")
    for state in states:
        if not isinstance(state, Tensor) or state.dtype != torch.uint8 or state.dim() != 1 or "meta" in _form(state):
            refuse(where, f"a random generator that is {_form(state)}", "its state is a row of bytes")
