"""ONNX files of finalized models, checked: the same outputs in ONNX Runtime, the same zeros in the file.

export = export_onnx(model, torch.randn(1, 3, 224, 224), "model.onnx")
print(export)                      # per weight: where it is in the file, and whether TensorRT may use its zeros
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nmlearn.errors import ConfigError, ExportError, PatternError, PlanError, ViolationError
from nmlearn.files.atomic import explained
from nmlearn.integrations.onnx_runtime import Difference, compare, reason
from nmlearn.integrations.onnx_weights import OnnxWeight, find_weights
from nmlearn.maths.groups import Grouping, misfit
from nmlearn.maths.pattern import Pattern
from nmlearn.maths.zeros import input_axis, tightest
from nmlearn.model.example import evaluating
from nmlearn.model.names import plain_name, unwrap
from nmlearn.model.plan import input_axes

OPSET = 20
OLDEST_OPSET = 18  # the exporter writes no older operators
TOLERANCE = 1e-4


@dataclass(frozen=True)
class OnnxExport:
    """What was written; ``str(export)`` is a table.

    Attributes:
        path: the file.
        opset: the version of ONNX's operators in it.
        weights: the N:M weights as the file stores them.
        unused: N:M weights that the model's output does not depend on, and the file does not contain.
        difference: between ONNX Runtime and PyTorch; None if it was not measured.
    """

    path: Path
    opset: int
    weights: tuple[OnnxWeight, ...]
    unused: tuple[str, ...]
    difference: Difference | None

    def __str__(self) -> str:
        head = ("weight", "pattern", "initializer", "operator", "shape", "layout", "2:4 for TensorRT")
        lines = [_cells(weight) for weight in self.weights]
        widths = [max(len(line[i]) for line in (head, *lines)) for i in range(len(head))]
        table = [" ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) for line in (head, *lines)]
        return "\n".join([*(line.rstrip() for line in table), self.summary()])

    def summary(self) -> str:
        """One sentence: what was compared, and how close it was."""
        if self.difference is None:
            return f"{self.path}: opset {self.opset}, not compared with ONNX Runtime"
        return (
            f"{self.path}: opset {self.opset}, ONNX Runtime differs by {self.difference.relative:.1e} of the largest "
            f"output, {self.difference.absolute:.1e} absolute"
        )


def _cells(weight: OnnxWeight) -> tuple[str, ...]:
    shape, usable = "x".join(map(str, weight.shape)), "yes" if weight.two_of_four else "no"
    return (weight.name, str(weight.pattern), weight.initializer, weight.operator, shape, weight.layout, usable)


def export_onnx(
    model: nn.Module,
    example_inputs: Tensor | Sequence[Tensor],
    path: str | os.PathLike[str],
    *,
    patterns: Mapping[str, str | Pattern | Grouping] | None = None,
    opset: int = OPSET,
    dynamic_batch: bool = False,
    verify: bool = True,
    tolerance: float = TOLERANCE,
) -> OnnxExport:
    """Write a finalized model, dense with its zeros, as an ONNX file; nothing is written if a check fails.

    The model is exported in evaluation mode by ``torch.onnx.export(dynamo=True)`` and left in the mode it was in. Every
    N:M weight is then looked up in the file and its groups are checked there. Weights beyond 2 GB go to a second file
    next to it, ``PATH.data``.

    Args:
        model: an ordinary module; wrappers of DDP and torch.compile are looked through.
        example_inputs: what ``model(*example_inputs)`` accepts, with the shapes and dtypes to export for.
        path: the file; its folder is created.
        patterns: qualified name of a weight -> the pattern it must have; a :class:`nmlearn.Grouping` gives the input
            axis as well. None: found from the zeros. From a plan: ``{r.name: r.pattern for r in plan.sparse}``.
        opset: the version of ONNX's operators, 18 or later.
        dynamic_batch: leave the first dimension of every input free; verified with twice the example's batch as well.
        verify: if ONNX Runtime is installed, run the file in it and compare the outputs with the model's.
        tolerance: the largest difference allowed, as a share of the largest magnitude in each output.

    Returns:
        where each weight is in the file, and the measured difference.

    Raises:
        ConfigError: no package onnx or onnxscript, or an opset that is too old.
        PlanError, PatternError: a name in ``patterns`` that is not a weight, or a pattern that does not fit.
        ViolationError: a weight that breaks its pattern, in the model or in the file, by name.
        ExportError: an LSTM with ``proj_size``; the exporter or ONNX Runtime fails, or the outputs differ by more than
            the tolerance.
        WriteError: the system refuses the file or its folder.
    """
    _check_installed()
    _check_opset(opset)
    inner, path = unwrap(model), Path(path)
    inputs = (example_inputs,) if isinstance(example_inputs, Tensor) else tuple(example_inputs)
    claimed = _claims(inner, patterns)
    _check_patterns(claimed)
    _check_projections(inner)
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{path.name}."
    with explained(path), evaluating(inner), tempfile.TemporaryDirectory(prefix=prefix, dir=path.parent) as folder:
        _check_runs(inner, inputs)
        program = _exported(inner, inputs, opset, dynamic_batch)
        draft = Path(folder) / path.name
        program.save(draft)
        used = _used(inner, program.exported_program)
        weights = find_weights(draft, {name: claim for name, claim in claimed.items() if id(claim[0]) in used})
        difference = None
        if verify and importlib.util.find_spec("onnxruntime"):
            batches = [inputs, tuple(map(_twice, inputs))] if dynamic_batch else [inputs]
            difference = compare(draft, inner, batches, tolerance)
        for file in Path(folder).iterdir():
            os.replace(file, path.parent / file.name)
    unused = tuple(name for name, (weight, _) in claimed.items() if id(weight) not in used)
    return OnnxExport(path, opset, tuple(weights), unused, difference)


def _check_installed() -> None:
    for package in ("onnx", "onnxscript"):
        if importlib.util.find_spec(package) is None:
            raise ConfigError(
                where="export_onnx",
                given="this installation",
                wrong=f"no package {package}, which torch.onnx needs",
                fix="pip install 'nmlearn[onnx]'",
            )


def _check_opset(opset: int) -> None:
    if opset < OLDEST_OPSET:
        raise ConfigError(
            where="opset",
            given=opset,
            wrong="torch.onnx writes no opset that old",
            fix=f"give {OLDEST_OPSET} or later, and convert the file with onnx.version_converter if needed",
        )


def _claims(
    model: nn.Module, patterns: Mapping[str, str | Pattern | Grouping] | None
) -> dict[str, tuple[Tensor, Grouping]]:
    """The weights that have, or should have, a pattern."""
    axes = input_axes(model)
    # Without duplicates: a tied weight is one weight, under its first name, unless `patterns` names another.
    named = {plain_name(name): p for name, p in model.named_parameters(remove_duplicate=patterns is None)}
    if patterns is not None:
        return {name: (_known(name, named), _grouping(name, named[name], axes, p)) for name, p in patterns.items()}
    found: dict[str, tuple[Tensor, Grouping]] = {}
    for name, weight in named.items():
        if name in axes and weight.is_floating_point():
            pattern = tightest(weight.detach() != 0, axes[name])
            if pattern is not None:
                found[name] = (weight, Grouping(pattern, axes[name]))
    return found


def _known(name: str, named: Mapping[str, Tensor]) -> Tensor:
    if name not in named:
        near = ", ".join(list(named)[:6])
        raise PlanError(where=name, given="patterns", wrong="the model has no such weight", fix=f"names are {near} ...")
    return named[name]


def _grouping(name: str, weight: Tensor, axes: Mapping[str, int], rule: str | Pattern | Grouping) -> Grouping:
    if not isinstance(rule, Grouping):
        pattern = Pattern(rule)
        rule = Grouping(pattern, axes[name] if name in axes else input_axis(weight.detach() != 0, pattern))
    why = misfit(tuple(weight.shape), rule.axis, rule.pattern)
    if why:
        raise PatternError(where=name, given=rule.pattern, wrong=why, fix="give the pattern that it was trained with")
    return rule


def _check_patterns(claimed: Mapping[str, tuple[Tensor, Grouping]]) -> None:
    wrong = {name: grouping.violation(weight.detach() != 0) for name, (weight, grouping) in claimed.items()}
    wrong = {name: why for name, why in wrong.items() if why}
    if wrong:
        raise ViolationError(
            where=next(iter(wrong)),
            given="a model to export",
            wrong="; ".join(f"{name}: {why}" for name, why in wrong.items()),
            fix="export after finalize(), and do not write to the weights in between",
        )


def _check_projections(model: nn.Module) -> None:
    """Refuse what torch.onnx writes without its projection: another network, or a file that no runtime loads."""
    for name, module in model.named_modules():
        if isinstance(module, nn.LSTM) and module.proj_size:
            raise ExportError(
                where=plain_name(name) or type(module).__name__,
                given=module,
                wrong="torch.onnx writes no projection of an LSTM's states, and ONNX has no operator for it",
                fix="train one with proj_size=0, and a Linear layer behind it",
            )


def _check_runs(model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Run the model: its own errors are clearer outside of an export."""
    try:
        with torch.no_grad():
            model(*inputs)
    except Exception as error:
        raise ExportError(
            where="export_onnx",
            given=_call_text(model, inputs),
            wrong=f"the model fails on them: {reason(error)}",
            fix="give example_inputs for which model(*example_inputs) works",
        ) from error


def _call_text(model: nn.Module, inputs: tuple[Tensor, ...]) -> str:
    return f"{type(model).__name__} with inputs of {', '.join(f'{x.dtype} {list(x.shape)}' for x in inputs)}"


def _exported(model: nn.Module, inputs: tuple[Tensor, ...], opset: int, dynamic_batch: bool) -> Any:
    batch = torch.export.Dim("batch")
    shapes = tuple({0: batch} if x.ndim else None for x in inputs)
    try:
        with _silent():
            return torch.onnx.export(
                model,
                inputs,
                dynamo=True,
                verbose=False,
                opset_version=opset,
                dynamic_shapes=shapes if dynamic_batch else None,
            )
    except Exception as error:  # the exporter's own, and whatever the model raises for these inputs
        raise ExportError(
            where="export_onnx",
            given=_call_text(model, inputs),
            wrong=f"torch.onnx cannot export it: {reason(error)}",
            fix="check that torch.export.export(model, example_inputs) works, or export without dynamic_batch",
        ) from error


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Silence the exporter's logs and deprecation warnings about its own code; its errors say enough."""
    levels = {logger: logger.level for logger in map(logging.getLogger, ("torch.export", "torch.onnx", "onnxscript"))}
    for logger in levels:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            for kind in (DeprecationWarning, FutureWarning):
                warnings.simplefilter("ignore", kind)
            yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)


def _used(model: nn.Module, program: Any) -> set[int]:
    """The parameters that the exported graph reads, by id, so that all names of a tied one count."""
    named = dict(model.named_parameters(remove_duplicate=False))
    read = {node.name for node in program.graph.nodes if node.op == "placeholder" and node.users}
    return {id(named[name]) for key, name in program.graph_signature.inputs_to_parameters.items() if key in read}


def _twice(x: Tensor) -> Tensor:
    return torch.cat([x, x]) if x.ndim else x
