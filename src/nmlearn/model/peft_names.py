"""What PEFT puts around the layers of a model: recognised by the names of its classes, never imported.

PEFT replaces a layer by one that holds it as ``base_layer`` next to the adapter's own weights, and a module that is
trained whole by one that holds ``original_module`` and a copy in ``modules_to_save``; :func:`original_name` undoes it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from torch import nn

_ADAPTERS = ("BaseTunerLayer", "BasePromptEncoder")
_COPIED = ("ModulesToSaveWrapper",)
_AROUND = ("PeftModel", "PeftMixedModel", "AuxiliaryTrainingWrapper")
_INSERTED = re.compile(r"\.(?:base_layer|original_module|modules_to_save\.[^.]+)(?=\.)")


def places(model: nn.Module) -> dict[str, str]:
    """The paths of modules whose weights are not the model's own, and why no pattern is meant for them.

    They are the layers that hold an adapter's weights (LoRA and its like, encoders of prompts), except for their base
    layers, and modules of which a copy is trained.
    """
    found = {}
    for path, module in model.named_modules(remove_duplicate=False):
        if _is(module, _ADAPTERS):
            found[path] = "of an adapter: dense unless a rule names it"
        elif _is(module, _COPIED):
            found[f"{path}.original_module"] = "its copy in modules_to_save is used: dense unless a rule names it"
    return found


def wrapped(model: nn.Module) -> bool:
    """Whether PEFT has put anything into or around this model."""
    return any(_is(module, (*_ADAPTERS, *_AROUND)) for module in model.modules())


def owner(name: str, paths: Iterable[str]) -> str | None:
    """Which of the :func:`places` a weight is in; None for a weight of the model itself.

    Args:
        name: the weight's qualified name.
        paths: of the places.
    """
    for path in paths:
        inside = f"{path}." if path else ""
        if name.startswith(inside) and not name.startswith(f"{inside}base_layer."):
            return path
    return None


def original_name(name: str) -> str:
    """What a weight was called before PEFT: ``base_model.model.fc.base_layer.weight`` is ``fc.weight``."""
    return _INSERTED.sub("", "." + name.removeprefix("base_model.model.")).removeprefix(".")


def _is(module: nn.Module, kinds: tuple[str, ...]) -> bool:
    return any(kind.__name__ in kinds and kind.__module__.startswith("peft.") for kind in type(module).__mro__)
