"""``accelerate``: replace the layers for which a packed kernel was measured to be faster, and report them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nmlearn.acceleration import cpu_candidates, measured, replacement, rounding, whole
from nmlearn.acceleration.candidates import Found, find
from nmlearn.acceleration.gpu import Gpu
from nmlearn.acceleration.left_dense import left_dense
from nmlearn.acceleration.observing import Seen
from nmlearn.errors import KernelError
from nmlearn.model import example
from nmlearn.model.moving import moving
from nmlearn.native import library as native

_TOLERANCE = {torch.bfloat16: 0.05, torch.float16: 0.01}  # of the largest output
_ROUNDED = {"rows int8": 0.1, "bytes": 0.3}


@dataclass(frozen=True)
class Row:
    """What was found for one layer; times in milliseconds, None where nothing was measured.

    `why` says why a layer stays dense; for replaced layers too, it lists the errors of kernels that were tried, and
    why their times are noisy. `error` is the relative error (rms) of the layer's output on the example, where a rounded
    kernel computes it.
    """

    name: str
    weight: tuple[int, ...]
    pattern: str
    input: tuple[int, ...]
    eager_ms: float | None
    dense_ms: float | None
    sparse_ms: float | None
    kernel: str
    chosen: bool
    why: str
    noisy: bool = False
    error: float | None = None


@dataclass(frozen=True)
class Acceleration:
    """What :func:`accelerate` did; ``print`` shows the table.

    Attributes:
        rows: one for each Linear and Conv2d of the model, and one for each sparse weight of other layers.
        before_ms, after_ms: the whole model on the example, dense (in the faster memory format) and as it is now.
        kernels, threads: the kernels' instruction set, or the GPU; and the number of CPU threads.
        images: the memory format of the model's convolutions, "" if it has none.
        graph: whether before_ms and after_ms time CUDA graphs of the whole model.
        gpu: whether the model is on a GPU.
        change: of the model's outputs on the example, relative (rms); None where all kernels compute what dense does.
    """

    rows: list[Row]
    before_ms: float
    after_ms: float
    kernels: str
    threads: int
    images: str
    graph: bool = False
    gpu: bool = False
    change: float | None = None

    def __str__(self) -> str:
        head = ("layer", "weight", "pattern", "input", "eager", "dense", "sparse", "kernel or reason")
        lines = [head, *(_cells(row) for row in self.rows)]
        widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
        table = [
            "  ".join(
                c.rjust(w) if 4 <= i <= 6 else c.ljust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))
            )
            for line in lines
        ]
        count = sum(row.chosen for row in self.rows)
        model = f"model {self.before_ms:.3g} ms dense, {self.after_ms:.3g} ms now"
        how = f"{self.kernels} kernels, {self.threads} threads"
        note = "times in ms; eager is plain torch, dense the faster of eager and oneDNN with a pre-packed weight"
        if self.gpu:
            how = f"{self.kernels}, {'in a CUDA graph' if self.graph else 'called from Python'}"
            note = "times in ms; layers in CUDA graphs where they can be captured; eager is plain torch"
        where = f"{how}{', ' + self.images if self.images else ''}"
        said = [line.rstrip() for line in table]
        said += [f"{count} of {len(self.rows)} layers packed; {model} ({where})", note]
        if self.change is not None:
            said.append(f"rounded kernels change the model's outputs on the example by {self.change:.2%} (rms)")
        if noisy := sum(row.noisy for row in self.rows):
            said.append(f"the times of {noisy} layers are noisy (other work on the machine?): they are not kept")
        return "\n".join(said)


def accelerate(
    model: nn.Module,
    example_inputs: Any,
    *,
    int8: bool = False,
    activations: str = "float",
    layer_error: float = 0.05,
    cache: Path | None = measured.DEFAULT,
) -> Acceleration:
    """Replace layers of a finalized model in place, each only where it was measured faster than the best dense one.

    Every Linear and Conv2d whose zeros form a pattern is timed on the shapes it sees in the example: eager, oneDNN with
    a pre-packed weight, and each kernel that supports it, interleaved. Batch norm after a packed convolution is folded
    into it, and the kernel also computes additions and activations that follow in a block's own code. The model is
    restored if its outputs then differ from those before, or if it is not faster.

    On an NVIDIA GPU the candidates are eager, Triton's decode and 2:4 by cuSPARSELt and CUTLASS; nothing is folded.
    Times are those of CUDA graphs where the layer, and the whole model, can be captured: run the model in one.

    Args:
        model: in evaluation mode, on the CPU (float32 or bfloat16) or an NVIDIA GPU; changed in place.
        example_inputs: a tensor, a tuple of arguments or a dict of keyword arguments, of the shapes to optimize for.
        int8: also offer packed weights of int8 with one float32 scale per row: smaller, faster for few tokens, not
            exact; CPU only.
        activations: "int8" also offers kernels that round activations to 7 bits in each token of each call, and weights
            to int8: fastest, not exact; CPU only, for linear layers and 1x1 convolutions.
        layer_error: a layer gets neither of these where its output on the example has a larger relative error (rms).
        cache: a JSON file of times per machine, so that a second call measures nothing but what was
            noisy; None always measures.

    Returns:
        a table with one row per layer: shapes, times, and the kernel or the reason why it stays dense.

    Raises:
        KernelError: an argument is wrong, the model is in training mode, a sparsifier is still removing weights from
            it, its forward refuses the example, or its outputs differ with packed layers (it is restored).
    """
    rounded = _rounded(int8, activations, layer_error)
    if model.training:
        fix = "call model.eval() first"
        raise KernelError(
            where="accelerate", given="a model in training mode", wrong="packed layers cannot be trained", fix=fix
        )
    if names := moving(model.parameters()):
        raise KernelError(
            where="accelerate",
            given=f"a model in the middle of learning: {names[0]}{f' and {len(names) - 1} more' * (len(names) > 1)}",
            wrong="a sparsifier is still removing values, and layers that are replaced now would not follow",
            fix="call finalize() after the last step first; to measure what it has now, accelerate a copy.deepcopy",
        )
    with torch.inference_mode():
        call, seen = whole.first_run(model, example_inputs, "accelerate: example_inputs")
        times = measured.Times(cache)
        found = {name: find(name, layer, seen, times, rounded) for name, layer in seen.layers.items()}
        times.save()
        errors = _within(layer_error, model, call, found)
        images = _faster_format(found)
        rows = [_row(name, found[name], seen, images, errors) for name in seen.layers]
        others = left_dense(model, seen.layers)
        rows += [_unmeasured(name, tuple(weight.shape), str(pattern), why) for name, weight, pattern, why in others]
        gpu = whole.gpu_behind(seen)
        before = whole.dense_time(model, call, gpu)
        choices = {row.name: found[row.name].choice(row.kernel) for row in rows if row.chosen}
        if not choices:
            return _report(rows, before, before, images, gpu)
        change = replacement.replace_layers(model, choices, seen, images)
        inexact = {row.kernel for row in rows if row.chosen and row.error is not None}
        try:
            now = _called(call)
            _compare(seen.output, now, inexact)
            shift = rounding.output_change(seen.output, now) if inexact else None
            after = whole.time("after", call, gpu)
        except BaseException:
            change.undo()
            raise
        if whole.like(after, before) >= whole.like(before, after):
            change.undo()
            why = "the model as a whole was not faster"
            rows = [replace(row, chosen=False, why=why) if row.chosen else row for row in rows]
            after, shift = before, None
    return replace(_report(rows, before, after, images, gpu), change=shift)


def _rounded(int8: bool, activations: str, layer_error: float) -> tuple[str, ...]:
    """The candidates that do not compute what the layer does, as asked for."""
    if activations not in ("float", "int8"):
        where, wrong = "accelerate: activations", "there are no such activations"
        raise KernelError(where=where, given=repr(activations), wrong=wrong, fix='choose "float" or "int8"')
    if not layer_error >= 0:
        where, wrong = "accelerate: layer_error", "it is a share of the output, 0 or more"
        raise KernelError(where=where, given=layer_error, wrong=wrong, fix="give 0.05 for five per cent")
    return tuple(c for c, asked in zip(cpu_candidates.ROUNDED, (int8, activations == "int8"), strict=True) if asked)


def _within(most: float, model: nn.Module, call: Callable[[], Any], found: dict[str, Found]) -> dict[str, float]:
    """Take away rounded candidates that would be chosen and whose error is larger; the errors of those that stay."""
    known: dict[tuple[str, str], float] = {}
    while True:
        images = _faster_format(found)
        best = {name: f.best_sparse(images)[0] for name, f in found.items() if not f.why and f.gains(images)}
        best = {name: candidate for name, candidate in best.items() if candidate in cpu_candidates.ROUNDED}
        new = {name: found[name].choice(best[name]) for name in best if (name, best[name]) not in known}
        if not new:
            return {name: known[name, candidate] for name, candidate in best.items()}
        for name, error in rounding.layer_errors(model, call, new).items():  # type: ignore[arg-type]
            known[name, best[name]] = error
            if not error <= most:
                found[name].drop(best[name], f"a relative error of {error:.1%}, over {most:.1%}")


def _report(
    rows: list[Row], before: dict[str, float], after: dict[str, float], images: str, gpu: Gpu | None
) -> Acceleration:
    times = (whole.like(before, after) * 1e3, whole.like(after, before) * 1e3)
    kernels, graph = native.isa() or "reference", "graph" in before and "graph" in after
    kernels = kernels if gpu is None else gpu.name()
    return Acceleration(rows, *times, kernels, torch.get_num_threads(), images, graph, gpu is not None)


def _faster_format(found: dict[str, Found]) -> str:
    """The memory format with the least total time of the convolutions, each with its fastest candidate in it."""
    images = [f for f in found.values() if f.images]
    if not images:
        return ""
    return min(("channels_last", "contiguous"), key=lambda name: sum(f.best(name)[1] for f in images))


def _row(name: str, found: Found, seen: Seen, images: str, errors: dict[str, float]) -> Row:
    shape = tuple(seen.layers[name].weight.shape)
    given = seen.shapes(name)
    if found.why:
        pattern = "" if found.pattern is None else str(found.pattern)
        return _unmeasured(name, shape, pattern, found.why, given)
    kernel, seconds = found.best_sparse(images)
    dense, eager, sparse = found.dense(), found.eager(images), seconds * 1e3 if kernel else None
    chosen = found.gains(images)
    why = "" if chosen else "dense is as fast" if kernel else "no kernel supports all its inputs"
    failed = "; ".join(f"{kernel}: {reason}" for kernel, reason in found.failed.items())
    why = "; ".join(reason for reason in (why, failed, found.noise and f"noisy times: {found.noise}") if reason)
    times = (eager * 1e3, dense * 1e3, sparse)
    return Row(name, shape, str(found.pattern), given, *times, kernel, chosen, why, bool(found.noise), errors.get(name))


def _unmeasured(name: str, shape: tuple[int, ...], pattern: str, why: str, given: tuple[int, ...] = ()) -> Row:
    return Row(name, shape, pattern, given, None, None, None, "", False, why)


def _cells(row: Row) -> tuple[str, ...]:
    times = ["" if t is None else f"{t:.3f}" for t in (row.eager_ms, row.dense_ms, row.sparse_ms)]
    sizes = ["x".join(str(length) for length in shape) for shape in (row.weight, row.input)]
    kernel = row.kernel if row.error is None else f"{row.kernel} (error {row.error:.2%})"
    return (row.name, sizes[0], row.pattern, sizes[1], *times, kernel if row.chosen else row.why)


def _called(call: Callable[[], Any]) -> Any:
    """What the model with packed layers gives."""
    try:
        return call()
    except Exception as error:
        raise _restored("the example", f"the model's forward said: {type(error).__name__}: {error}") from error


def _compare(expected: Any, got: Any, rounded: set[str]) -> None:
    """Up to a tolerance: packed kernels sum in another order, and rounded ones are only to be near."""
    before, now = example.tensors(expected), example.tensors(got)
    if [x.shape for x in before] != [x.shape for x in now]:
        shapes = [str([tuple(x.shape) for x in outputs]) for outputs in (before, now)]
        raise _restored(f"outputs of shapes {shapes[0]}", f"they have the shapes {shapes[1]}")
    for a, b in zip(before, now, strict=True):
        if not a.is_floating_point():
            continue
        tolerance = max([_TOLERANCE.get(a.dtype, 2e-3), *(_ROUNDED[kernel] for kernel in rounded)])
        worst, largest = _difference(a.double(), b.double()) if a.numel() else (0.0, 0.0)
        if not worst <= tolerance * max(largest, 1e-6):
            raise _restored(f"output of shape {tuple(a.shape)}", f"an output differs by up to {worst:.3g}")


def _difference(a: Tensor, b: Tensor) -> tuple[float, float]:
    """The largest difference, and the largest finite value of the first; infinities and NaN are equal to themselves."""
    same = (a == b) | (a.isnan() & b.isnan())
    return float((a - b).abs().masked_fill(same, 0).max()), float(a.abs().masked_fill(~a.isfinite(), 0).max())


def _restored(given: str, wrong: str) -> KernelError:
    wrong = f"with the packed layers {wrong}; the model was restored"
    fix = "leave it dense and report the model: a layer is used in a way that the example run did not show"
    return KernelError(where="accelerate", given=given, wrong=wrong, fix=fix)
