"""torchvision, as far as others import it: timm and the Trainer of transformers do so where it is installed."""

from __future__ import annotations

import contextlib
import importlib

import torch

# Schemas that torchvision's Python code refers to at import. Its builds for other accelerators than this torch's cannot
# load their compiled part, and then the import fails although the classification models need none of it.
SCHEMAS = {
    "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


def load() -> None:
    """Import torchvision if it is there, since others import it too; a failure is theirs to report."""
    with contextlib.suppress(Exception):
        try:
            importlib.import_module("torchvision")
        except RuntimeError:
            # Only now: a build that fits defines these operators itself, and nobody may define one twice.
            for name, schema in SCHEMAS.items():
                if not hasattr(torch.ops.torchvision, name):
                    torch.library.define(f"torchvision::{name}", schema)
            importlib.import_module("torchvision")
