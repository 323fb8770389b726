"""Names: qualified names of weights without what wrappers put into them, and globs that match them."""

from __future__ import annotations

import fnmatch
import re

from torch import nn

_WRAPPERS = ("DistributedDataParallel", "DataParallel", "AveragedModel", "ModelEmaV2", "ModelEmaV3")
_WRAPPING = re.compile(r"(^|\.)(_orig_mod|_checkpoint_wrapped_module)(?=\.|$)")


def unwrap(model: nn.Module) -> nn.Module:
    """The user's own module inside DDP, DataParallel, torch.compile, AveragedModel and timm's EMA wrappers.

    Classes made from one of these, such as torchvision's average, are looked through too.
    """
    while True:
        if any(kind.__name__ in _WRAPPERS for kind in type(model).__mro__):
            model = model.module  # type: ignore[assignment]
        elif type(model).__name__ == "OptimizedModule":
            model = model._orig_mod  # type: ignore[assignment]
        else:
            return model


def parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """All parameters by plain qualified name, under each of their names."""
    return {plain_name(name): p for name, p in unwrap(model).named_parameters(remove_duplicate=False)}


def plain_name(name: str) -> str:
    """A qualified name without what torch.compile and checkpoint wrappers put into it."""
    return _WRAPPING.sub("", name).removeprefix(".")


def matches(glob: str, weight: str) -> bool:
    """Whether a glob matches a weight's name or the name of a module that it is in; "" is the model."""
    parts = weight.split(".")
    return any(fnmatch.fnmatchcase(".".join(parts[:i]), glob) for i in range(len(parts) + 1))
