"""Training from the command line: configuration, the loop, comparisons. Nothing here imports torch until it is used.

config = TrainConfig(method=MethodConfig("lbc", "2:4"), epochs=8, out="runs/first")
summary = train(config)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from nmlearn.lab.train.config import CompareConfig, DataConfig, MethodConfig, ModelConfig, OptimConfig, TrainConfig

if TYPE_CHECKING:
    from nmlearn.lab.train.compare import compare
    from nmlearn.lab.train.loop import train

__all__ = [
    "CompareConfig",
    "DataConfig",
    "MethodConfig",
    "ModelConfig",
    "OptimConfig",
    "TrainConfig",
    "compare",
    "train",
]

_LATE = {"train": "nmlearn.lab.train.loop", "compare": "nmlearn.lab.train.compare"}


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # Importing the submodule compare put the module under this very name: put the function in its place.
    value = getattr(importlib.import_module(_LATE[name]), name)
    globals()[name] = value
    return value
