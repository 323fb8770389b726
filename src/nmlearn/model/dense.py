"""Which layers stay dense by default: the first convolution and the output layer, as in the paper (LBC)."""

from __future__ import annotations

import re

from torch import nn

from nmlearn.model.executed import Executed
from nmlearn.model.found import Found

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_OUTPUTS = (nn.Linear, *_CONVOLUTIONS, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
# What libraries call output layers, or the module whose last layer is one.
_HEADS = {"head", "lm_head", "classifier", "head_dist", "conv_out", "cls_score", "cls_logits", "bbox_pred", "bbox_reg"}
_GATE = re.compile(r"(^|[._])gat(e|ing)(?![^._])")
_FIRST = "first convolution: dense by default, as in the paper"
_LAST = "output layer: dense by default, as in the paper"


def dense_by_default(found: list[Found], seen: Executed | None = None) -> dict[str, str]:
    """The reasons by the weights' names, those of what PEFT added too.

    Output layers are those that ended the model on an example, but for gates and what other blocks repeat. Without an
    example they are those that are named so; without any of these, the last layer is taken for one, unless it repeats
    another block's, is a gate, or the model's head is tied to an embedding.

    Args:
        found: all weights of a model.
        seen: what a run on an example showed.
    """
    own = [item for item in found if not item.aside]
    layers = [item for item in own if isinstance(item.owners[0], _OUTPUTS)]
    reasons = _named_or_guessed(own, layers, seen) if seen is None or seen.last is None else _seen(own, layers, seen)
    convolutions = [item for item in layers if isinstance(item.owners[0], _CONVOLUTIONS)]
    first = convolutions[:1] if seen is None else [item for item in convolutions if item.names[0] in seen.first]
    reasons |= {item.names[0]: _FIRST for item in first}
    return reasons | {item.names[0]: item.aside for item in found if item.aside}


def _seen(own: list[Found], layers: list[Found], seen: Executed) -> dict[str, str]:
    """The layers that end the model, but for those tied to an embedding; attention is no layer of these kinds.

    So does a layer that is named so and reaches the output, but goes on to others: boxes that masks are drawn in.
    """
    last = (seen.last or frozenset()) | {item.names[0] for item in _heads(own) if item.names[0] in seen.reached}
    ends = [item for item in layers if item.names[0] in last and not (_is_gate(item) or _tied_to_embedding(item))]
    others = [item for item in layers if item.names[0] not in last]
    alone = [item for item in ends if not any(_same_place(item, other) for other in others)]
    return {item.names[0]: f"{_LAST} (seen on the example)" for item in alone}


def _named_or_guessed(own: list[Found], layers: list[Found], seen: Executed | None) -> dict[str, str]:
    reasons = {item.names[0]: _LAST for item in _heads(own)}
    if reasons or any(_tied_to_embedding(item) for item in own):
        return reasons
    lost = "on the example no layer was seen to reach the model's output: give a rule"
    return _guess(layers, "give an example or a rule" if seen is None else lost)


def _heads(own: list[Found]) -> list[Found]:
    """The layers that are called an output layer, and the last ones in modules that are."""
    last: dict[str, Found] = {}
    for item in sorted(own, key=_tied_to_embedding):  # a tied head is found first in its embedding
        if any(isinstance(owner, _OUTPUTS) for owner in item.owners):
            for name in item.called:
                parts = name.split(".")[:-1]
                last |= {".".join(parts[: i + 1]): item for i, part in enumerate(parts) if part in _HEADS}
    return [item for item in last.values() if not _tied_to_embedding(item)]


def _guess(layers: list[Found], advice: str) -> dict[str, str]:
    """The last layer by registration, which need not be the last that is called."""
    layers = [item for item in layers if not _is_gate(item)]
    if not layers or any(_same_place(layers[-1], other) for other in layers[:-1]):
        return {}
    last = layers[-1].names[0]
    return {last: _LAST if f".{last}".endswith(".fc.weight") else f"{_LAST} (a guess: {advice})"}


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
