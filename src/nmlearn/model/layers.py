"""What kinds of layer there are, and where their inputs lie."""

from __future__ import annotations

import fnmatch
from typing import Any

from torch import nn

from nmlearn.maths.groups import Grouping

# Layer -> the axis of its weights that runs along the inputs, or why they are never sparse.
_LAYERS: list[tuple[Any, str, int | str]] = [
    (nn.Linear, "weight", 1),
    ((nn.Conv1d, nn.Conv2d, nn.Conv3d), "weight", 1),
    ((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), "weight", 0),
    (nn.MultiheadAttention, "*_proj_weight", 1),
    ((nn.RNNBase, nn.RNNCellBase), "weight_*", 1),
    ((nn.Embedding, nn.EmbeddingBag), "weight", "an embedding: its rows are looked up, not multiplied"),
]
# Layers of libraries that are not imported here, by their qualified type name.
_FOREIGN_LAYERS = {"transformers.pytorch_utils.Conv1D": 0}


def input_axis(module: nn.Module, own: str, parameter: nn.Parameter) -> int | str:
    """The axis of a layer's own parameter that runs along its inputs (-1: perhaps the last), or why it stays dense."""
    for layer, weight, axis in _LAYERS:
        if isinstance(module, layer) and fnmatch.fnmatchcase(own, weight):
            return axis
    kind = f"{type(module).__module__}.{type(module).__name__}"
    if kind in _FOREIGN_LAYERS and own == "weight":
        return _FOREIGN_LAYERS[kind]
    if parameter.dim() == 3:
        return -1
    return "a parameter of a layer nmlearn does not know"


def straddles(module: nn.Module, grouping: Grouping) -> str:
    """Why groups of M would reach over the convolution groups of a transposed convolution; empty when they do not.

    Its weight is ``[in, out / groups, ...]``: the first axis holds the inputs of all groups. That of other convolutions
    is ``[out, in / groups, ...]``.
    """
    if not isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d) or grouping.axis:
        return ""
    inputs = module.in_channels // module.groups
    if inputs % grouping.pattern.m:
        return f"{inputs} input channels in each convolution group, not a multiple of {grouping.pattern.m}"
    return ""
