"""What rounded kernels do to the outputs of layers and of the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from nmlearn.acceleration import fusing
from nmlearn.acceleration.fusing import Choice
from nmlearn.model import example


def layer_errors(model: nn.Module, call: Callable[[], Any], choices: Mapping[str, Choice]) -> dict[str, float]:
    """The relative error of each layer's output in a run of the model, were that layer alone packed.

    Args:
        model: runs with its dense layers.
        call: runs it.
        choices: by the layers' names.

    Returns:
        the root mean square of the difference over that of the dense layer's output; NaN where either is not finite.
    """
    sums = {name: [0.0, 0.0] for name in choices}
    with ExitStack() as hooked:
        for name, choice in choices.items():
            with torch.inference_mode(False), torch.no_grad():
                packed = fusing.pack(choice)
            hook = model.get_submodule(name).register_forward_hook(_comparing(packed, sums[name]))
            hooked.callback(hook.remove)
        call()
    return {name: _ratio(*pair) for name, pair in sums.items()}


def output_change(before: Any, now: Any) -> float:
    """The root mean square of the difference of a model's floating-point outputs, over that of the outputs before."""
    pairs = [(a, b) for a, b in zip(example.tensors(before), example.tensors(now), strict=True)]
    pairs = [(a, b) for a, b in pairs if a.is_floating_point()]
    return _ratio(sum(_square(b - a) for a, b in pairs), sum(_square(a) for a, _ in pairs))


def _comparing(packed: nn.Module, sums: list[float]) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
    def compare(_: nn.Module, args: tuple[Any, ...], out: Tensor) -> None:
        sums[0] += _square(packed(args[0]) - out)
        sums[1] += _square(out)

    return compare


def _square(x: Tensor) -> float:
    return float(x.double().square().sum())


def _ratio(difference: float, whole: float) -> float:
    return (difference / whole) ** 0.5 if whole else 0.0 if difference == 0 else float("inf")
