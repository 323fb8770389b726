"""What each choice of a pattern costs: parameters, bytes of a packed file, multiply-adds or time on this machine.

All are whole numbers, time in picoseconds, and of the whole model: what no pattern is chosen for counts too.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nmlearn.acceleration import measured, replacement, whole
from nmlearn.acceleration.candidates import FORMATS, Found, find
from nmlearn.acceleration.observing import Dense, Seen
from nmlearn.acceleration.options import Options
from nmlearn.files.formats.encoding import Encoding, smallest
from nmlearn.files.selection import WORTH
from nmlearn.maths import masks
from nmlearn.maths.groups import Grouping
from nmlearn.model import example
from nmlearn.model.plan import PlanRow, input_axes
from nmlearn.model.products import multiply_adds

PICOSECONDS = 10**12


@dataclass(frozen=True)
class Costs:
    """What choices cost.

    Attributes:
        dense: of the whole dense model.
        rest: of everything that nothing is chosen for.
        of: by the weight's name, one for each of its options.
        notes: by the weight's name, what is to be said of its costs.
    """

    dense: int
    rest: int
    of: Mapping[str, tuple[int, ...]]
    notes: Mapping[str, str] = field(default_factory=dict)


def parameters(model: nn.Module, options: Options) -> Costs:
    """Values that are kept, of all parameters."""
    dense = {name: row.weights for name, row in options.rows.items()}
    every = sum(parameter.numel() for parameter in model.parameters())
    return _counted(every, dense, options, lambda name, grouping: _kept(dense[name], grouping))


def packed_bytes(model: nn.Module, options: Options) -> Costs:
    """Bytes of the tensors in a packed file, of all parameters and buffers that are saved."""
    dense = {name: options.rows[name].parameter.nbytes for name in options.of}
    own = {id(tensor): tensor for tensor in model.state_dict(keep_vars=True).values() if isinstance(tensor, Tensor)}
    every = sum(tensor.nbytes for tensor in own.values())

    def cost(name: str, grouping: Grouping) -> int:
        dtype, pattern = options.rows[name].parameter.dtype, grouping.pattern
        size = Encoding(grouping, options.rows[name].shape, dtype, smallest(pattern)).nbytes
        return size if size <= WORTH * dense[name] else dense[name]  # a file leaves it dense then

    return _counted(every, dense, options, cost)


def flops(model: nn.Module, options: Options, inputs: Any) -> Costs:
    """Multiply-adds on an example, of all weights of linear layers, convolutions and the like.

    Raises:
        KernelError: the model's forward refuses the example.
    """
    with torch.no_grad(), example.evaluating(model):
        call, _ = whole.first_run(model, inputs, "allocate: example")
    sparse = {name for name, some in options.of.items() if some != (None,)}
    dense = dict.fromkeys(options.of, 0) | multiply_adds(model, call, input_axes(model).keys() | sparse)
    return _counted(sum(dense.values()), dense, options, lambda name, grouping: _kept(dense[name], grouping))


def _kept(count: int, grouping: Grouping) -> int:
    return count // grouping.pattern.m * grouping.pattern.n


def _counted(every: int, dense: Mapping[str, int], options: Options, cost: Callable[[str, Grouping], int]) -> Costs:
    of = {
        name: tuple(dense[name] if grouping is None else cost(name, grouping) for grouping in some)
        for name, some in options.of.items()
    }
    return Costs(every, every - sum(dense[name] for name in options.of), of)


# Time


def times(model: nn.Module, options: Options, inputs: Any, cache: Path | None) -> list[Costs]:
    """Picoseconds of the model on an example, as :func:`nmlearn.acceleration.accelerate.accelerate` would make it.

    Each layer is timed with each of its patterns, pruned by magnitude, as there: a pattern takes the time of its
    fastest kernel, or the dense layer's where none is faster. What else the model does takes what its dense time leaves
    beyond the layers' own, and at least nothing.

    Returns:
        one for each memory format of images, or one alone for a model without convolutions; all with the dense time in
        the faster format.

    Raises:
        KernelError: the model's forward refuses the example.
    """
    with torch.inference_mode(), example.evaluating(model):
        call, seen = whole.first_run(model, inputs, "allocate: example")
        layers = {
            name: [layer for layer in seen.layers if _has(seen.layers[layer], options.rows[name])]
            for name in options.of
        }
        known = measured.Times(cache)
        found = {
            (name, grouping): [_found(at, seen, grouping, known) for at in layers[name]]
            for name, some in options.of.items()
            for grouping in some
            if grouping is not None
        }
        known.save()
        gpu, dense = whole.gpu_behind(seen), {}
        for images in FORMATS:
            with replacement.formatted(model, FORMATS[images]) as changed:
                seconds = whole.time("now", call, gpu)
            dense[images if changed else ""] = whole.like(seconds, seconds)
            if not changed:
                break
    return [_timed(images, dense, options, found) for images in dense]


def _has(layer: Dense, row: PlanRow) -> bool:
    return layer.weight is row.parameter


def _found(name: str, seen: Seen, grouping: Grouping, times: measured.Times) -> Found:
    """The times of a layer with the weights of largest magnitude in a pattern; it stays as it is."""
    found = find(name, _pruned(seen.layers[name], grouping), seen, times, ())
    found.layer = seen.layers[name]  # the pruned copies of all patterns together would be large
    return found


def _pruned(layer: Dense, grouping: Grouping) -> Dense:
    w_gm = grouping.view(layer.weight.detach())
    twin = copy.copy(layer)
    twin._parameters = dict(layer._parameters)
    kept_gm = masks.kept(w_gm, masks.top(masks.finite_first(w_gm.abs()), grouping.pattern.n))
    twin.weight = nn.Parameter(grouping.unview(kept_gm).contiguous(), requires_grad=False)
    return twin


def _timed(
    images: str,
    dense: Mapping[str, float],
    options: Options,
    found: Mapping[tuple[str, Grouping], list[Found]],
) -> Costs:
    """The costs in one memory format."""
    of, notes, eager_of_all = {}, {}, 0.0
    for name, some in options.of.items():
        tried = {grouping: found[name, grouping] for grouping in some if grouping is not None}
        eager = [
            min((f.eager(images) for f in layer if f.times), default=0.0) for layer in zip(*tried.values(), strict=True)
        ]
        eager_of_all += sum(eager)
        seconds = {g: sum(map(_seconds, fs, eager, itertools.repeat(images))) for g, fs in tried.items()}
        of[name] = tuple(math.ceil(PICOSECONDS * (sum(eager) if g is None else seconds[g])) for g in some)
        notes[name] = _note(images, list(tried.values()))
    rest = max(0.0, dense[images] - eager_of_all)
    return Costs(math.floor(PICOSECONDS * min(dense.values())), math.ceil(PICOSECONDS * rest), of, notes)


def _seconds(found: Found, eager: float, images: str) -> float:
    return found.best_sparse(images)[1] if found.times and found.gains(images) else eager


def _note(images: str, tried: Iterable[list[Found]]) -> str:
    """Why no pattern makes a weight's layers faster, or why their times are not to be trusted."""
    every = [found for some in tried for found in some]
    if not every:
        return "only Linear and Conv2d become faster"
    if all(found.why for found in every):
        return every[0].why
    noise = next((f"noisy times: {found.noise}" for found in every if found.noise), "")
    return noise or ("" if any(f.times and f.gains(images) for f in every) else "no kernel is faster than dense")
