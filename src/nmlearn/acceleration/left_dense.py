"""The sparse weights that no packed layer can take over, each with the reason."""

from __future__ import annotations

from collections.abc import Container, Iterator

from torch import nn

from nmlearn.acceleration.observing import READ_WEIGHTS
from nmlearn.maths import zeros
from nmlearn.maths.pattern import Pattern
from nmlearn.model import layers


def left_dense(model: nn.Module, measured: Container[str]) -> Iterator[tuple[str, nn.Parameter, Pattern, str]]:
    """Name, weight, pattern and reason of each sparse weight outside of the layers that were measured.

    Args:
        model: the model.
        measured: the names of the layers that have a row of their own; their weights are not given, nor those tied to
            them.
    """
    seen = {id(p) for name, module in model.named_modules() if name in measured for p in module.parameters(False)}
    for path, module in model.named_modules():
        for own, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen or parameter.dim() < 2:
                continue
            seen.add(id(parameter))
            kept_w = parameter.detach() != 0
            axis = layers.input_axis(module, own, parameter)
            known = isinstance(axis, int) and axis >= 0
            pattern = zeros.tightest(kept_w, axis if known else zeros.input_axis(kept_w))  # type: ignore[arg-type]
            if pattern is not None and kept_w.any():  # zeros alone are a start value, such as LoRA's
                yield (path if own == "weight" else f"{path}.{own}".lstrip(".")), parameter, pattern, _why(module, axis)


def _why(module: nn.Module, axis: int | str) -> str:
    kind = type(module).__name__
    for base in (nn.Linear, nn.Conv2d):
        if isinstance(module, base):
            own = "with its own forward" if type(module).forward is not base.forward else "which may differ from it"
            return f"its layer is a {kind}: a subclass of {base.__name__} {own}"
    if isinstance(module, READ_WEIGHTS) or isinstance(axis, int):
        return f"its layer is a {kind}: only Linear and Conv2d are replaced"
    return axis
