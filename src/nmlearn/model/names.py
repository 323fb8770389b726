"""Names: qualified names of weights without what wrappers put into them, and globs that match them."""

from __future__ import annotations

import fnmatch
import re

from torch import nn

from nmlearn.errors import PlanError

_WRAPPERS = ("DistributedDataParallel", "DataParallel", "AveragedModel", "ModelEmaV2", "ModelEmaV3")
_WRAPPING = re.compile(r"(^|\.)(_orig_mod|_checkpoint_wrapped_module)(?=\.|$)")


def unwrap(model: nn.Module) -> nn.Module:
    """The user's own module inside DDP, DataParallel, torch.compile, AveragedModel and timm's EMA wrappers."""
    while True:
        if type(model).__name__ in _WRAPPERS:
            model = model.module  # type: ignore[assignment]
        elif type(model).__name__ == "OptimizedModule":
            model = model._orig_mod  # type: ignore[assignment]
        else:
            return model


def plain_name(name: str) -> str:
    """A qualified name without what torch.compile and checkpoint wrappers put into it."""
    return _WRAPPING.sub("", name).removeprefix(".")


def by_name(model: nn.Module, names: list[str]) -> dict[str, nn.Parameter]:
    """The parameters of these qualified names in another model of the same kind.

    Raises:
        PlanError: one is missing.
    """
    named = {plain_name(name): p for name, p in unwrap(model).named_parameters(remove_duplicate=False)}
    for name in names:
        if name not in named:
            raise PlanError(
                where=name,
                given=type(model).__name__,
                wrong="this model has no such weight",
                fix="give an averaged copy of the model that the sparsifier was made for",
            )
    return {name: named[name] for name in names}


def matches(glob: str, weight: str) -> bool:
    """Whether a glob matches a weight's name or the name of a module that it is in; "" is the model."""
    parts = weight.split(".")
    return any(fnmatch.fnmatchcase(".".join(parts[:i]), glob) for i in range(len(parts) + 1))
