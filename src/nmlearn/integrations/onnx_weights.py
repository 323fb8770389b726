"""Where the weights of a model are in an ONNX file: under which name, in which layout, with which zeros.

The exporter renames weights, and transposes them (Linear on three dimensions becomes MatMul with ``[in, out]``). It
scales their rows (batch norm folded into a convolution), reorders them (an LSTM's gates), cuts them (attention with
separate keys) or joins them (both directions of an LSTM). All of that preserves the set of rows along the inputs, or at
least the set of their zeros. Weights are found by these sets, not by names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nmlearn.errors import ViolationError
from nmlearn.maths.groups import Grouping
from nmlearn.maths.pattern import Pattern

Array = np.ndarray[Any, Any]

LAYOUTS = {
    "Conv": "[out, in, ...]",
    "ConvTranspose": "[in, out, ...]",
    "RNN": "[directions, out, in]",
    "GRU": "[directions, out, in]",
    "LSTM": "[directions, out, in]",
}
SPARSE_TACTICS = ("Conv", "Gemm", "MatMul")  # the operators for which TensorRT has sparse kernels


@dataclass(frozen=True)
class OnnxWeight:
    """A weight of a model as an ONNX file stores it.

    Attributes:
        name: the weight's qualified name in the model.
        pattern: the pattern that holds in the file.
        initializer: its name in the file.
        operator: the operators that use it, e.g. "Conv" or "MatMul".
        shape: the initializer's, as written; it may hold other weights as well: those of an LSTM's other direction.
        axis: the axis of that shape along which the groups run, over inputs.
        layout: what the axes are, e.g. "[in, out]".
        two_of_four: whether TensorRT may use a sparse tactic for it: the operator is a convolution or a matrix product
            over this axis, and each aligned four of the weights along it keep at most two.
    """

    name: str
    pattern: Pattern
    initializer: str
    operator: str
    shape: tuple[int, ...]
    axis: int
    layout: str
    two_of_four: bool


@dataclass(frozen=True)
class _Stored:
    """A float initializer of two or more dimensions, and its uses: a node, and the index among its inputs."""

    name: str
    values: Array
    uses: tuple[tuple[Any, int], ...]


class _Rows:
    """The rows of an array along one axis, as sets of 64-bit numbers: of their values, and of only their zeros."""

    def __init__(self, values: Array, axis: int) -> None:
        rows: Array = np.moveaxis(values, axis, -1).reshape(-1, values.shape[axis])
        exact: Array = np.where(rows == 0, np.zeros((), rows.dtype), rows)  # a negative zero is a zero
        self.values = _hashed(np.ascontiguousarray(exact).view(f"u{exact.itemsize}"))
        self.zeros = _hashed(rows != 0)

    def contain(self, others: Array) -> bool:
        """Whether all rows of others, given as their values, are among these."""
        return bool(np.isin(others, self.values).all())


def _hashed(rows: Array) -> Array:
    """Sorted hashes of rows of unsigned integers, equal for equal rows: multilinear hashing modulo 2^64."""
    factors = np.random.default_rng(0).integers(1, 2**63, rows.shape[1], np.uint64) * 2 + 1
    return np.sort(np.einsum("rl,l->r", rows, factors, dtype=np.uint64, casting="unsafe"))


def find_weights(path: Path, weights: Mapping[str, tuple[Tensor, Grouping]]) -> list[OnnxWeight]:
    """Find weights in an ONNX file, and check their zeros there.

    Args:
        path: the file; its external data is read too.
        weights: qualified name -> the tensor in the model, of any float dtype, and its grouping there.

    Returns:
        one entry per weight and initializer with it: several if the exporter cut it or wrote it in two layouts.

    Raises:
        ViolationError: the file lacks the zeros of some weights; it lists all of them.
    """
    lengths = {tensor.shape[grouping.axis] for tensor, grouping in weights.values()}
    places = [
        (stored, axis, _Rows(stored.values, axis))
        for stored in _read(path)
        for axis, length in enumerate(stored.values.shape)
        if length in lengths
    ]
    found, wrong = [], {}
    for name, (tensor, grouping) in weights.items():
        own = _places(name, tensor, grouping, places)
        why = "" if own else "none of its initializers has these zeros"
        for stored, axis, joined in own:
            if not joined:  # of a joined one, the rows that are this weight's have exactly its values
                why = why or Grouping(grouping.pattern, axis).violation(torch.from_numpy(stored.values != 0))
            found.append(_described(name, grouping.pattern, stored, axis))
        if why:
            wrong[name] = why
    if wrong:
        raise ViolationError(
            where=next(iter(wrong)),
            given=path.name,
            wrong="; ".join(f"{name}: {why}" for name, why in wrong.items()),
            fix="export the finalized model itself, without parametrizations that compute its weights",
        )
    return found


def _places(
    name: str, tensor: Tensor, grouping: Grouping, places: Iterable[tuple[_Stored, int, _Rows]]
) -> list[tuple[_Stored, int, bool]]:
    """The initializers that contain a weight, each with the axis of the inputs, and whether it is joined with others.

    They are those with exactly its rows, or with its name and its zeros (batch norm folded in); else those with all its
    rows among others; else those with its zeros; else parts that together contain all its rows.
    """
    values = tensor.detach().cpu()
    mine = _Rows((values if values.dtype == torch.float64 else values.float()).numpy(), grouping.axis)
    places = [place for place in places if place[0].values.shape[place[1]] == tensor.shape[grouping.axis]]
    same_zeros = [place for place in places if np.array_equal(place[2].zeros, mine.zeros)]
    found = [
        (stored, axis, rows)
        for stored, axis, rows in same_zeros
        if np.array_equal(rows.values, mine.values) or (stored.name == name and axis == grouping.axis)
    ]
    joined = [] if found else [place for place in places if place[2].contain(mine.values)]
    found = found or joined or same_zeros
    if not found:
        parts = [place for place in places if mine.contain(place[2].values)]
        whole = bool(parts) and np.isin(mine.values, np.concatenate([rows.values for _, _, rows in parts])).all()
        found = parts if whole else []
    return [(stored, axis, bool(joined)) for stored, axis, _ in found]


def _read(path: Path) -> list[_Stored]:
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(path).graph
    uses: dict[str, list[tuple[Any, int]]] = {}
    for node in graph.node:
        for place, name in enumerate(node.input):
            uses.setdefault(name, []).append((node, place))
    stored = []
    for initializer in graph.initializer:
        floating = initializer.data_type in (1, 10, 11, 16)  # float32, float16, float64, bfloat16
        if len(initializer.dims) > 1 and floating:
            values = numpy_helper.to_array(initializer)
            values = values if values.dtype == np.float64 else values.astype(np.float32)
            stored.append(_Stored(initializer.name, values, tuple(uses.get(initializer.name, ()))))
    return stored


def _described(name: str, pattern: Pattern, stored: _Stored, axis: int) -> OnnxWeight:
    operators = sorted({node.op_type for node, _ in stored.uses})
    summed = {_summed_axis(node, place, stored.values.ndim) for node, place in stored.uses}
    kept = torch.from_numpy(stored.values != 0)
    fours = kept.shape[axis] % 4 == 0 and not Grouping(Pattern(2, 4), axis).violation(kept)
    return OnnxWeight(
        name=name,
        pattern=pattern,
        initializer=stored.name,
        operator=", ".join(operators),
        shape=stored.values.shape,
        axis=axis,
        layout=_layout(operators, stored.values.ndim, axis),
        two_of_four=fours and set(operators) <= set(SPARSE_TACTICS) and summed == {axis},
    )


def _summed_axis(node: Any, place: int, ndim: int) -> int | None:
    """The axis of an operand that a node sums over; None for operators where it is unknown."""
    if node.op_type == "Conv" and place == 1:
        return 1
    if node.op_type == "MatMul" and place < 2:
        return ndim - 2 if place == 1 else ndim - 1
    if node.op_type == "Gemm" and place < 2:
        transposed = {attribute.name: attribute.i for attribute in node.attribute}.get("trans" + "AB"[place], 0)
        return 1 - transposed if place == 0 else int(transposed)
    return None


def _layout(operators: list[str], ndim: int, axis: int) -> str:
    known = LAYOUTS.get(operators[0]) if len(operators) == 1 else None
    if known is None and ndim == 2:
        return "[in, out]" if axis == 0 else "[out, in]"
    names = ["..."] * ndim
    names[axis] = "in"
    return known or f"[{', '.join(names)}]"
