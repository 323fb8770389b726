"""Which layers stay dense by default."""

from __future__ import annotations

from torch import nn

from nmlearn.model.found import Found


def dense_by_default(found: list[Found]) -> dict[str, str]:
    """The first convolution and the output layer, as in the paper (LBC keeps both dense), and what PEFT added."""
    reasons = {item.names[0]: item.aside for item in found if item.aside}
    own = [item for item in found if not item.aside]
    for item in own:
        if isinstance(item.owners[0], nn.Conv1d | nn.Conv2d | nn.Conv3d):
            reasons[item.names[0]] = "first convolution: dense by default, as in the paper"
            break
    linear = [item for item in own if isinstance(item.owners[0], nn.Linear)]
    if linear and not any(_same_place(linear[-1], other) for other in linear[:-1]):
        reasons[linear[-1].names[0]] = "output layer: dense by default, as in the paper"
    return reasons


def _same_place(a: Found, b: Found) -> bool:
    """Whether two layers stand at the same place of repeated blocks; an output layer has no such twin."""
    (*block, layer, _), (*others, other, _) = (["", *item.names[0].split(".")] for item in (a, b))
    numbered = [part for part in block if part.isdecimal()]
    unnumbered = [[part for part in parts if not part.isdecimal()] for parts in (block, others)]
    alike = layer == other and len(block) == len(others) and unnumbered[0] == unnumbered[1]
    return bool(numbered) and alike and a.parameter.shape == b.parameter.shape
