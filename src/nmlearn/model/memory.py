"""Parameters that share memory without being one: tied by ``.data``, or one a view of another.

An optimizer steps each of them, so zeros of the one are overwritten by the step of the other.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from nmlearn.model.shards import local


def shared(named: Iterable[tuple[str, nn.Parameter]]) -> dict[int, str]:
    """The ids of parameters that overlap another one in memory, each with the name of such a one.

    Those that have gaps in memory are left out: their spans may overlap although no value does.
    """
    spans = []
    for name, parameter in named:
        if (place := _span(local(parameter))) is not None:
            spans.append((*place, name, parameter))
    found: dict[int, str] = {}
    spans.sort(key=lambda span: span[:3])
    for i, (device, _, end, name, parameter) in enumerate(spans):
        for other_device, other_begin, _, other_name, other in spans[i + 1 :]:
            if other_device != device or other_begin >= end:
                break
            found.setdefault(id(parameter), other_name)
            found.setdefault(id(other), name)
    return found


def _span(tensor: Tensor) -> tuple[str, int, int] | None:
    """Where a tensor begins and ends in its device's memory; None without memory, or with gaps."""
    if type(tensor) is not Tensor or tensor.is_meta or not tensor.numel():
        return None
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    extent = 1 + sum((length - 1) * stride for length, stride in steps)
    begin = tensor.data_ptr()
    return (str(tensor.device), begin, begin + extent * tensor.itemsize) if extent == tensor.numel() else None
