"""Which layers stay dense by default: the first convolution and the output layer, as in the paper (LBC)."""

from __future__ import annotations

import re

from torch import nn

from nmlearn.model.found import Found

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_OUTPUTS = (nn.Linear, *_CONVOLUTIONS, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
# What libraries call output layers, or the module whose last layer is one.
_HEADS = {"head", "lm_head", "classifier", "head_dist", "conv_out", "cls_score", "cls_logits", "bbox_pred", "bbox_reg"}
_GATE = re.compile(r"(^|[._])gat(e|ing)(?![^._])")
_FIRST = "first convolution: dense by default, as in the paper"
_LAST = "output layer: dense by default, as in the paper"


def dense_by_default(found: list[Found]) -> dict[str, str]:
    """The reasons by the weights' names, those of what PEFT added too.

    Output layers are those that are named so. Without any, the last layer is taken for one, unless it repeats another
    block's, is a gate, or the model's head is tied to an embedding.
    """
    own = [item for item in found if not item.aside]
    layers = [item for item in own if isinstance(item.owners[0], _OUTPUTS)]
    reasons = {item.names[0]: _LAST for item in _heads(own)}
    if not reasons and not any(_tied_to_embedding(item) for item in own):
        reasons = _guess(layers)
    first = [item for item in layers if isinstance(item.owners[0], _CONVOLUTIONS)][:1]
    reasons |= {item.names[0]: _FIRST for item in first}
    return reasons | {item.names[0]: item.aside for item in found if item.aside}


def _heads(own: list[Found]) -> list[Found]:
    """The layers that are called an output layer, and the last ones in modules that are."""
    last: dict[str, Found] = {}
    for item in sorted(own, key=_tied_to_embedding):  # a tied head is found first in its embedding
        if any(isinstance(owner, _OUTPUTS) for owner in item.owners):
            for name in item.called:
                parts = name.split(".")[:-1]
                last |= {".".join(parts[: i + 1]): item for i, part in enumerate(parts) if part in _HEADS}
    return [item for item in last.values() if not _tied_to_embedding(item)]


def _guess(layers: list[Found]) -> dict[str, str]:
    """The last layer by registration, which need not be the last that is called."""
    layers = [item for item in layers if not _is_gate(item)]
    if not layers or any(_same_place(layers[-1], other) for other in layers[:-1]):
        return {}
    last = layers[-1].names[0]
    return {last: _LAST if f".{last}".endswith(".fc.weight") else f"{_LAST} (a guess: give a rule)"}


def _is_gate(item: Found) -> bool:
    """Whether a layer of one or two outputs is called a gate: it weighs what others compute."""
    return item.parameter.shape[0] <= 2 and bool(_GATE.search(item.names[0]))


def _tied_to_embedding(item: Found) -> bool:
    return all(any(isinstance(owner, kind) for owner in item.owners) for kind in (nn.Embedding, nn.Linear))


def _same_place(a: Found, b: Found) -> bool:
    """Whether two layers stand at the same place of repeated blocks; an output layer has no such twin."""
    (*block, layer, _), (*others, other, _) = (["", *item.names[0].split(".")] for item in (a, b))
    numbered = [part for part in block if part.isdecimal()]
    unnumbered = [[part for part in parts if not part.isdecimal()] for parts in (block, others)]
    alike = layer == other and len(block) == len(others) and unnumbered[0] == unnumbered[1]
    return bool(numbered) and alike and a.parameter.shape == b.parameter.shape
