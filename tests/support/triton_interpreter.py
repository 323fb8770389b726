"""Triton's interpreter, and products for it to compute.

Triton decides when it is imported whether it interprets, so the interpreter has a process of its own and no other test
meets it. Inputs are made from their description on both sides; results come back as numpy arrays.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from nmlearn.maths.pattern import Pattern
from nmlearn.packed.kernels import triton_decode

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
# Of the largest sum of magnitudes in a row. The interpreter cuts a float32 off to bfloat16 instead of rounding it.
TOLERANCE = {torch.float32: 1e-6, torch.float16: 2**-11, torch.bfloat16: 2**-7}


@dataclass(frozen=True)
class Case:
    """One product; everything in it follows from these numbers."""

    pattern: str = "2:4"
    dtype: torch.dtype = torch.float32
    shape: tuple[int, ...] = (1,)
    outputs: int = 37
    groups: int = 11
    bias: bool = True
    launch: triton_decode.Launch | None = None

    def operands(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Input, weight with some groups that keep fewer than N, bias."""
        pattern, make = Pattern(self.pattern), torch.Generator().manual_seed(0)
        w_gm = torch.randn(self.outputs, self.groups, pattern.m, generator=make)
        place = torch.rand(w_gm.shape, generator=make).topk(pattern.n, -1).indices
        keep = torch.zeros_like(w_gm).scatter(-1, place, 1.0) * (torch.rand(w_gm.shape, generator=make) < 0.9)
        x = torch.randn(*self.shape, self.groups * pattern.m, generator=make)
        bias = torch.randn(self.outputs, generator=make) if self.bias else None
        return x.to(self.dtype), (w_gm * keep).flatten(1).to(self.dtype), bias


def computed(case: Case) -> np.ndarray[Any, Any]:
    """What the kernels make of a case; runs in the interpreter's process."""
    x, weight, bias = case.operands()
    pattern = Pattern(case.pattern)
    values, index = triton_decode.pack(weight, pattern)
    out = triton_decode.linear(x, values, index, bias, pattern.n, pattern.m, case.outputs, case.launch)
    assert out.dtype == case.dtype
    return out.double().numpy()


def in_interpreter() -> None:
    os.environ["TRITON_INTERPRET"] = "1"
    warnings.simplefilter("error")
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def interpreter() -> Iterator[Callable[..., Any]]:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=in_interpreter) as pool:
        yield lambda function, *args: pool.submit(function, *args).result()


def agrees(case: Case, out: np.ndarray[Any, Any]) -> None:
    x, weight, bias = case.operands()
    added = torch.zeros(case.outputs) if bias is None else bias
    expected = x.double() @ weight.double().T + added.double()
    scale = x.double().abs() @ weight.double().T.abs() + added.double().abs()
    assert out.shape == tuple(expected.shape)
    error = np.abs(out - expected.numpy())
    assert (error <= TOLERANCE[case.dtype] * scale.numpy()).all(), error.max()
