"""Comparing an ONNX file with the model it was exported from, by running both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from nmlearn.errors import ExportError


@dataclass(frozen=True)
class Difference:
    """The difference between two runs of a model, in the output where it is relatively largest.

    Attributes:
        absolute: the largest absolute difference in it.
        relative: the same over the largest magnitude in it; the tolerance applies to this.
    """

    absolute: float
    relative: float


def compare(path: Path, model: nn.Module, batches: list[tuple[Tensor, ...]], tolerance: float) -> Difference:
    """Run a file and the model it was exported from on the same inputs, on the CPU.

    Args:
        path: the ONNX file.
        model: in evaluation mode.
        batches: the inputs of each run.
        tolerance: the largest relative difference allowed.

    Returns:
        the largest difference of all runs.

    Raises:
        ExportError: ONNX Runtime fails, or differs by more than the tolerance.
    """
    session = _tried(path, _session, path)
    largest = Difference(0.0, 0.0)
    for inputs in batches:
        with torch.no_grad():
            expected = [x.detach().cpu() for x in tree_leaves(model(*inputs)) if isinstance(x, Tensor)]
        found = difference(expected, _tried(path, _outputs, session, inputs))
        if not found.relative <= tolerance:
            wrong = f"ONNX Runtime differs by {found.relative:.1e} of the largest output, {found.absolute:.1e} absolute"
            raise _failed(path, f"{wrong}, more than the tolerance {tolerance:.1e}")
        largest = max(largest, found, key=lambda one: one.relative)
    return largest


def _session(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors only
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _outputs(session: Any, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    feeds = zip(session.get_inputs(), inputs, strict=True)
    return [torch.from_numpy(x) for x in session.run(None, {slot.name: x.detach().cpu().numpy() for slot, x in feeds})]


def _tried(path: Path, call: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return call(*arguments)
    except Exception as error:  # ONNX Runtime's have no common base, and NumPy raises for types it lacks
        raise _failed(path, f"ONNX Runtime cannot run it: {reason(error)}") from error


def _failed(path: Path, wrong: str) -> ExportError:
    fix = "export in float32, allow a larger tolerance, or give verify=False and compare with another runtime"
    return ExportError(where="export_onnx", given=path.name, wrong=wrong, fix=fix)


def difference(expected: list[Tensor], found: list[Tensor]) -> Difference:
    """The largest difference over all outputs; infinite where shapes, infinities or NaNs disagree.

    Args:
        expected: outputs of PyTorch, in order; their largest magnitudes are the scales (1 for an output of zeros).
        found: outputs of another runtime.
    """
    if [x.shape for x in expected] != [x.shape for x in found]:
        return Difference(inf, inf)
    largest = Difference(0.0, 0.0)
    for a, b in zip(expected, found, strict=True):
        if a.numel():
            a, b = a.double(), b.double()
            apart = torch.where((a == b) | (a.isnan() & b.isnan()), 0.0, (a - b).abs()).nan_to_num(inf, inf)
            scale = float(a[a.isfinite()].abs().max()) if bool(a.isfinite().any()) else 0.0
            one = Difference(float(apart.max()), float(apart.max()) / (scale or 1.0))
            largest = max(largest, one, key=lambda each: each.relative)
    return largest


def reason(error: BaseException) -> str:
    """The message of the first error in a chain: the exporter wraps it in a page of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {str(error).strip()[:500]}"
