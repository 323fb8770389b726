"""torchvision, which timm and the Trainer of transformers import if it is installed."""

from __future__ import annotations

import contextlib
import importlib

import torch

# Schemas that torchvision's Python code refers to at import. A build for another accelerator than torch's cannot load
# its compiled part, and then the import fails although the classification models do not need it.
SCHEMAS = {
    "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


def load() -> None:
    """Import torchvision if it is installed, since others import it too and report failures."""
    with contextlib.suppress(Exception):
        try:
            importlib.import_module("torchvision")
        except RuntimeError:
            # Only now: a matching build defines these operators itself, and none may be defined twice.
            for name, schema in SCHEMAS.items():
                if not hasattr(torch.ops.torchvision, name):
                    torch.library.define(f"torchvision::{name}", schema)
            importlib.import_module("torchvision")
