"""The GPU kernels on a GPU: equal to dense, in a CUDA graph, without waiting for the device."""

import importlib.util
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nmlearn.maths.pattern import Pattern
from nmlearn.packed.kernels import semi_structured, triton_decode

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


def sparse(outputs: int, inputs: int, pattern: str, dtype: torch.dtype) -> Tensor:
    nm = Pattern(pattern)
    w_gm = torch.randn(outputs, inputs // nm.m, nm.m, device="cuda")
    keep = torch.zeros_like(w_gm).scatter(-1, torch.rand_like(w_gm).topk(nm.n, -1).indices, 1.0)
    return (w_gm * keep).flatten(1).to(dtype)


def no_worse_than_dense(out: Tensor, x: Tensor, weight: Tensor, bias: Tensor) -> None:
    """Errors against float64 are at most twice those of the dense product, and a rounding of the result."""
    exact = F.linear(x.double(), weight.double(), bias.double())
    dense = (F.linear(x, weight, bias).double() - exact).abs().max()
    rounding = torch.finfo(x.dtype).eps * exact.abs().max()
    assert out.dtype == x.dtype and (out.double() - exact).abs().max() <= 2 * dense + rounding


def runs_in_a_graph(call: Callable[[], Tensor], x: Tensor) -> None:
    """Captured and replayed on another input, it gives what it gives eagerly; the call never waits for the device."""
    call()  # compiles
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = call()
    x.copy_(torch.randn_like(x))
    graph.replay()
    assert torch.equal(captured, call())


@needs_triton
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("pattern", ["2:4", "4:8", "1:4", "2:8", "1:8", "2:16", "1:16"])
def test_decode_is_no_worse_than_dense(pattern, dtype, monkeypatch):
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    nm = Pattern(pattern)
    weight, bias = sparse(1000, 1040, pattern, dtype), torch.randn(1000, device="cuda", dtype=dtype)
    values, index = triton_decode.pack(weight, nm)
    for tokens in (1, 3, 4, 5, 17, 64):
        x = torch.randn(tokens, 1040, device="cuda", dtype=dtype)
        assert triton_decode.obstacle(x, nm, 1000, 1040) == ""
        no_worse_than_dense(triton_decode.linear(x, values, index, bias, nm.n, nm.m, 1000), x, weight, bias)


@needs_triton
@pytest.mark.parametrize("tokens", [1, 4, 8, 64])
def test_decode_in_a_graph(tokens):
    values, index = triton_decode.pack(sparse(512, 4096, "1:8", torch.bfloat16), "1:8")  # few rows: split inputs
    x = torch.randn(tokens, 4096, device="cuda", dtype=torch.bfloat16)
    runs_in_a_graph(lambda: triton_decode.linear(x, values, index, None, 1, 8, 512), x)


@pytest.mark.parametrize("backend", ["cusparselt", "cutlass"])
def test_semi_structured(backend):
    dtype = torch.bfloat16
    x = torch.randn(4, 128, 6, 8, device="cuda", dtype=dtype).to(memory_format=torch.channels_last)
    pixels = x.permute(0, 2, 3, 1)
    if why := semi_structured.obstacle(pixels, Pattern("2:4"), 256, 128, backend):
        pytest.skip(why)
    weight, bias = sparse(256, 128, "2:4", dtype), torch.randn(256, device="cuda", dtype=dtype)
    packed = semi_structured.pack(weight, backend)
    no_worse_than_dense(semi_structured.linear(pixels, packed, bias), pixels, weight, bias)
    out = semi_structured.linear(semi_structured.pixels(x, 2), packed, bias)
    no_worse_than_dense(out, pixels[:, ::2, ::2], weight, bias)
    rows = torch.randn(512, 128, device="cuda", dtype=dtype)
    runs_in_a_graph(lambda: semi_structured.linear(rows, packed, bias), rows)
