"""nmlearn: N:M fine-grained sparsity, learned during ordinary PyTorch training.

    import nmlearn as nm
    sparsifier = nm.Sparsifier(model, nm.LBC("2:4"))
    sparsifier.attach(optimizer, total_steps)
    ...                                  # the training loop, unchanged
    sparsifier.finalize()
    nm.save(model, "model.safetensors")  # packed; nm.load reads it

Names are loaded when they are first used, so that the command line answers without importing torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "acceleration.accelerate": ("Acceleration", "accelerate"),
    "acceleration.sparsify": ("Sparsified", "sparsify"),
    "acceleration.allocate": ("allocate",),
    "acceleration.allocation": ("Allocation",),
    "files.model_file": ("load", "save"),
    "errors": ("NMLearnError",),
    "maths.pattern": ("Pattern",),
    "maths.groups": ("Grouping",),
    "methods": ("METHODS", "Method"),  # and every registered method: they are looked up there
    "packed.modules": ("PackedConv2d", "PackedLinear"),
    "packed.gpu_modules": ("DecodeLinear", "SemiStructuredConv2d", "SemiStructuredLinear"),
    "learn.calibration": ("Seen", "calibrate"),
    "learn.distillation": ("Distillation",),
    "learn.sparsifier": ("Sparsifier",),
    "learn.weight": ("WeightStatus",),
    "model.plan": ("Plan", "PlanRow"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

if TYPE_CHECKING:
    from nmlearn.acceleration.accelerate import Acceleration as Acceleration
    from nmlearn.acceleration.accelerate import accelerate as accelerate
    from nmlearn.acceleration.allocate import allocate as allocate
    from nmlearn.acceleration.allocation import Allocation as Allocation
    from nmlearn.acceleration.sparsify import Sparsified as Sparsified
    from nmlearn.acceleration.sparsify import sparsify as sparsify
    from nmlearn.errors import NMLearnError as NMLearnError
    from nmlearn.files.model_file import load as load
    from nmlearn.files.model_file import save as save
    from nmlearn.learn.calibration import Seen as Seen
    from nmlearn.learn.calibration import calibrate as calibrate
    from nmlearn.learn.distillation import Distillation as Distillation
    from nmlearn.learn.sparsifier import Sparsifier as Sparsifier
    from nmlearn.learn.weight import WeightStatus as WeightStatus
    from nmlearn.maths.groups import Grouping as Grouping
    from nmlearn.maths.pattern import Pattern as Pattern
    from nmlearn.methods import *  # noqa: F403  (every registered method)
    from nmlearn.model.plan import Plan as Plan
    from nmlearn.model.plan import PlanRow as PlanRow
    from nmlearn.packed.gpu_modules import DecodeLinear as DecodeLinear
    from nmlearn.packed.gpu_modules import SemiStructuredConv2d as SemiStructuredConv2d
    from nmlearn.packed.gpu_modules import SemiStructuredLinear as SemiStructuredLinear
    from nmlearn.packed.modules import PackedConv2d as PackedConv2d
    from nmlearn.packed.modules import PackedLinear as PackedLinear


def __getattr__(name: str) -> Any:
    if name == "__all__":
        return sorted([*_HOME, *_methods()])
    if name in _HOME:
        return getattr(importlib.import_module(f"nmlearn.{_HOME[name]}"), name)
    if not name.startswith("_") and name in (methods := _methods()):
        return methods[name]
    raise AttributeError(f"module 'nmlearn' has no attribute {name!r}")


def _methods() -> dict[str, Any]:
    """The classes of the registry by their names."""
    registry = importlib.import_module("nmlearn.methods").METHODS
    return {kind.__name__: kind for kind in registry.values()}


def __dir__() -> list[str]:
    return [*globals(), *__getattr__("__all__")]
