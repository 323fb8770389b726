"""The Triton kernels compiled for two generations of GPUs, which needs none: what the loads of a decode step become."""

import importlib.util
import re
from typing import Any

import pytest
import torch

from nmlearn.maths.pattern import Pattern
from nmlearn.packed.kernels import triton_decode

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
POINTERS = {"x_ptr": "*bf16", "values_ptr": "*bf16", "index_ptr": "*i32", "bias_ptr": "*fp32", "out_ptr": "*bf16"}
ALIGNED = {*POINTERS, "outputs", "inputs", "rows", "chunks", "span"}  # what Triton finds out about a real call


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def compiled(pattern: str, tokens: int, capability: int) -> str:
    """PTX of the kernel for a weight 4096x4096, launched as by default."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from nmlearn.packed.kernels import triton_code

    nm = Pattern(pattern)
    launch = triton_decode.launches(tokens, 4096, 4096, nm, 132, torch.bfloat16)[0]
    code = triton_code.gather if tokens <= triton_decode.GATHERED_TOKENS else triton_code.expand
    constants = {"N": nm.n, "M": nm.m, "BLOCK_O": launch.block_o, "BLOCK_C": launch.block_c, "BIAS": True}
    constants |= {"TOKENS": tokens} if tokens <= triton_decode.GATHERED_TOKENS else {"TOKENS": 16, "WIDE": False}
    unspecialized = {code.arg_names[i] for i in range(len(code.arg_names)) if code.params[i].do_not_specialize}
    source = ASTSource(
        code,
        {name: "constexpr" if name in constants else POINTERS.get(name, "i32") for name in code.arg_names},
        {(code.arg_names.index(name),): value for name, value in constants.items()},
        {(code.arg_names.index(name),): [["tt.divisibility", 16]] for name in ALIGNED - unspecialized},
    )
    options = {"num_warps": launch.warps, "num_stages": launch.stages}
    built = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    assert built.asm["cubin"]
    return built.asm["ptx"]


@pytest.mark.parametrize("pattern", ["2:4", "1:16"])
def test_one_token_streams_the_weight(pattern):
    ptx = compiled(pattern, 1, 90)
    # A thread has 8 bf16 values in one load, four loads under way, and no barrier until its last chunk is read.
    wide = list(re.finditer(r"ld\.global\S*\.v4\.b32", ptx))
    assert len(wide) >= 4 and "bar.sync" not in ptx[: wide[-1].start()]


@pytest.mark.parametrize("capability", [80, 90])
def test_several_tokens_multiply_matrices_in_hardware(capability):
    ptx = compiled("1:4", 8, capability)
    assert re.search(r"wgmma\.mma_async|mma\.sync", ptx) and "cp.async" in ptx
