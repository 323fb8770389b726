"""PackedLinear against float64, for every layout, pattern, type and instruction set."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import nmlearn as nm
import operands
from nmlearn.native import library as native

CASES = [(layout, pattern) for layout, patterns in operands.OF_LINEAR.items() for pattern in patterns]
TOKENS = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 15, 16, 17, 33, 197)
FLOAT_TYPES = (torch.float32, torch.bfloat16)


@pytest.mark.parametrize("dtype", FLOAT_TYPES)
@pytest.mark.parametrize(("layout", "pattern"), CASES)
def test_patterns(isa: str, layout: str, pattern: str, dtype: torch.dtype) -> None:
    operands.linear(pattern, layout, dtype=dtype).check()
    operands.linear(pattern, layout, rows=16, size=(3,), dtype=dtype, fewer=0.5).check()


@pytest.mark.parametrize("pattern", operands.BOTH_LAYOUTS)
def test_patterns_int8(isa: str, pattern: str) -> None:
    for dtype in FLOAT_TYPES:
        operands.linear(pattern, "rows", dtype=dtype, int8=True, size=(5,)).check()


@pytest.mark.parametrize("layout", operands.OF_LINEAR)
@pytest.mark.parametrize("tokens", TOKENS)
def test_numbers_of_tokens(isa: str, layout: str, tokens: int) -> None:
    for pattern in ("2:4", "1:16"):
        for dtype in FLOAT_TYPES:
            operands.linear(pattern, layout, 40, 48, (tokens,), dtype=dtype).check()
    operands.linear("1:4", "rows", 40, 48, (tokens,), int8=True).check()


@pytest.mark.parametrize("layout", operands.OF_LINEAR)
@pytest.mark.parametrize("rows", [1, 2, 15, 16, 17, 31, 32, 33, 49, 63, 64, 65, 81, 130])
def test_numbers_of_rows(isa: str, layout: str, rows: int) -> None:
    for channels in (4, 12, 16, 20, 260):
        operands.linear("2:4", layout, rows, channels, (1,)).check(2)
        operands.linear("2:4", layout, rows, channels, (7,), dtype=torch.bfloat16).check()


@pytest.mark.parametrize("activation", operands.ACTIVATIONS)
@pytest.mark.parametrize("layout", operands.OF_LINEAR)
def test_what_follows_the_sum(isa: str, layout: str, activation: str) -> None:
    for bias, residual in ((False, False), (True, False), (False, True), (True, True)):
        for dtype in FLOAT_TYPES:
            call = operands.linear(
                "1:4", layout, 21, 24, (2, 11), dtype=dtype, bias=bias, residual=residual, activation=activation
            )
            call.x *= 4
            call.check(2)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("layout", operands.OF_LINEAR)
def test_threads(isa: str, layout: str, threads: int) -> None:
    torch.set_num_threads(threads)
    for size, rows in (((1,), 300), ((70,), 24), ((130,), 100), ((2, 9), 16)):
        operands.linear("2:8", layout, rows, 64, size).check()


@pytest.mark.parametrize("layout", operands.OF_LINEAR)
def test_long_sums(isa: str, layout: str) -> None:
    """Where errors add up: at most twice plain torch's, without a floor."""
    for pattern, channels in (("4:4", 1024), ("2:4", 4096), ("1:16", 8192)):
        operands.linear(pattern, layout, 48, channels, (40,)).check(0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
@pytest.mark.parametrize("layout", operands.OF_LINEAR)
def test_types_without_kernel(isa: str, layout: str, dtype: torch.dtype) -> None:
    operands.linear("2:4", layout, dtype=dtype, activation="gelu").check()
    operands.linear("2:4", "rows", dtype=dtype, int8=True).check()


@pytest.mark.parametrize("dtype", FLOAT_TYPES)
@pytest.mark.parametrize("layout", operands.OF_LINEAR)
def test_strided_inputs(isa: str, layout: str, dtype: torch.dtype) -> None:
    call = operands.linear("2:4", layout, 20, 24, (5, 6), dtype=dtype)
    expected = call.packed()
    wide = torch.randn(6, 5, 24, 3, dtype=dtype)
    wide[..., 1] = call.x.transpose(0, 1)
    call.x = wide[..., 1].transpose(0, 1)
    assert call.residual is not None
    call.residual = call.residual.transpose(0, 1).contiguous().transpose(0, 1)
    y = call.packed()
    assert torch.equal(y, expected)
    assert y.is_contiguous()


@pytest.mark.parametrize("layout", operands.OF_LINEAR)
def test_unaligned_inputs(isa: str, layout: str) -> None:
    call = operands.linear("1:4", layout, 20, 36, (5,))
    expected = call.packed()
    for place in (1, 3):
        room = torch.empty(call.x.numel() + place)
        call.x = room[place:].view_as(call.x).copy_(call.x)
        assert torch.equal(call.packed(), expected)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_call(isa: str, data: st.DataObject) -> None:
    layout, pattern = data.draw(st.sampled_from(CASES))
    int8 = layout == "rows" and data.draw(st.booleans())
    call = operands.linear(
        pattern,
        layout,
        data.draw(st.integers(1, 90)),
        nm.Pattern(pattern).m * data.draw(st.integers(1, 12)),
        tuple(data.draw(st.lists(st.integers(0, 12), max_size=3))),
        dtype=data.draw(st.sampled_from([*FLOAT_TYPES, torch.float16])),
        bias=data.draw(st.booleans()),
        residual=data.draw(st.booleans()),
        activation=data.draw(st.sampled_from(list(operands.ACTIVATIONS))),
        int8=int8,
        fewer=data.draw(st.sampled_from([0.0, 0.4, 1.0])),
    )
    torch.set_num_threads(data.draw(st.sampled_from([1, 2])))
    call.check(4)


@pytest.mark.parametrize("layout", operands.OF_LINEAR)
def test_without_library(no_kernels: None, layout: str) -> None:
    assert native.isa() == ""
    for dtype in (*FLOAT_TYPES, torch.float16):
        operands.linear("2:4", layout, dtype=dtype, activation="silu").check()
