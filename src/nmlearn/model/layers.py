"""What kinds of layer there are, and where their inputs lie."""

from __future__ import annotations

import fnmatch
from typing import Any

from torch import nn
from torch.nn.utils.parametrize import ParametrizationList

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
_FOREIGN_LAYERS = {
    "transformers.pytorch_utils.Conv1D": 0,
    "transformers.models.llama4.modeling_llama4.Llama4TextExperts": 1,
    "transformers.models.jetmoe.modeling_jetmoe.JetMoeParallelExperts": 2,
    "transformers.models.longcat_flash.modeling_longcat_flash.LongcatFlashExperts": 2,
    "transformers.models.step3p7.modeling_step3p7.Step3p7Experts": 2,
}
AXIS_UNKNOWN = (
    "3-D weight of a layer nmlearn does not know: name it in a rule to group its last dimension, "
    "or give the axis of its inputs: nm.Grouping(pattern, axis)"
)
_COMPUTED = (
    "its layer's weight is computed from this: remove the parametrization first (parametrize.remove_parametrizations "
    "or remove_weight_norm of torch.nn.utils), or give nm.Grouping(pattern, axis) where zeros stay zero"
)


def input_axis(module: nn.Module, own: str, parameter: nn.Parameter) -> int | str:
    """The axis of a layer's own parameter that runs along its inputs (-1: perhaps the last), or why it stays dense."""
    if isinstance(module, ParametrizationList):
        return _COMPUTED
    for layer, weight, axis in _LAYERS:
        if isinstance(module, layer) and fnmatch.fnmatchcase(own, weight):
            return axis
    if own in ("weight_v", "weight_g", "weight_orig"):  # torch's older functions of the same kind
        return _COMPUTED
    foreign = _foreign_axis(module)
    if foreign is not None and (own == "weight" or own.endswith("_proj")):
        return foreign
    if parameter.dim() == 3:
        return -1
    return "a parameter of a layer nmlearn does not know"


def is_known(module: nn.Module) -> bool:
    """Whether a module is a layer of a kind that is known here."""
    return any(isinstance(module, layer) for layer, _, _ in _LAYERS) or _foreign_axis(module) is not None


def _foreign_axis(module: nn.Module) -> int | None:
    """The axis of inputs in a layer of another library; None for one that is not known."""
    kind = type(module)
    if f"{kind.__module__}.{kind.__name__}" in _FOREIGN_LAYERS:
        return _FOREIGN_LAYERS[f"{kind.__module__}.{kind.__name__}"]
    # What transformers' @use_experts_implementation puts onto stacked experts: [experts, in, out] where transposed.
    if kind.__module__.startswith("transformers.") and {"is_transposed", "is_concatenated"} <= vars(module).keys():
        return 1 if module.is_transposed else 2
    return None


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
