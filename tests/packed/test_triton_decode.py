"""The Triton kernels against a float64 product of the masked dense weight, in Triton's interpreter."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nmlearn.errors import KernelError, PatternError, ViolationError
from nmlearn.maths.pattern import Pattern
from nmlearn.packed.kernels import triton_decode
from triton_interpreter import TOLERANCE, Case, agrees, computed, needs_triton

pytestmark = needs_triton
PATTERNS = ("2:4", "4:8", "1:4", "2:8", "1:8", "2:16", "1:16")


def without_nonfinite_padding() -> tuple[bool, bool]:
    """Infinite inputs under kept weights only, in a weight that needs padding: every sum is infinite, none NaN."""
    found = []
    for tokens in (1, 8):
        values, index = triton_decode.pack(torch.ones(64, 4), "4:4")
        x = torch.full((tokens, 4), torch.inf)
        found.append(bool(torch.isposinf(triton_decode.linear(x, values, index, None, 4, 4, 64)).all()))
    return found[0], found[1]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_equals_the_dense_product(interpreter, pattern, dtype):
    for number, tokens in enumerate((1, 2, 3, 4, 5, 8, 17, 64)):
        case = Case(pattern, dtype, (tokens,), bias=number % 2 == 0)
        agrees(case, interpreter(computed, case))


@settings(max_examples=25)
@given(
    n=st.integers(1, 16),
    m=st.sampled_from([4, 8, 16]),
    tokens=st.integers(1, 20),
    outputs=st.integers(1, 70),
    groups=st.integers(1, 40),
    bias=st.booleans(),
)
def test_any_shape_and_pattern(interpreter, n, m, tokens, outputs, groups, bias):
    case = Case(f"{min(n, m)}:{m}", torch.float32, (tokens,), outputs, groups, bias)
    agrees(case, interpreter(computed, case))


@pytest.mark.parametrize("tokens", [3, 6])
def test_every_launch_gives_the_same(interpreter, tokens):
    case = Case("2:8", torch.float16, (tokens,), outputs=50, groups=256)
    launches = triton_decode.launches(tokens, 50, 2048, Pattern("2:8"), 132, torch.float16)
    assert launches[0].splits > 1 and any(launch.splits == 1 for launch in launches)
    for launch in launches:
        agrees(case, interpreter(computed, replace(case, launch=launch)))


def test_splits_add_up_alike_every_time(interpreter):
    case = Case("1:8", torch.float32, (2,), outputs=20, groups=128)
    first, second = (interpreter(computed, case) for _ in range(2))
    assert (first == second).all()


@pytest.mark.parametrize("shape", [(), (2, 3), (2, 0), (0,)])
def test_leading_dimensions_and_no_tokens(interpreter, shape):
    case = Case("1:4", torch.float32, shape)
    agrees(case, interpreter(computed, case))


def test_padding_multiplies_nothing(interpreter):
    assert interpreter(without_nonfinite_padding) == (True, True)


@pytest.mark.parametrize("pattern", [*PATTERNS, "3:4", "16:16"])
def test_packed_weight_holds_each_weight_at_its_place(pattern):
    _, weight, _ = Case(pattern, torch.bfloat16).operands()
    n, m = Pattern(pattern).n, Pattern(pattern).m
    values, index = triton_decode.pack(weight, pattern)
    assert values.shape == (n, 2, 48, 8) and index.shape == (n, 2, 48) and index.dtype == torch.int32
    for row, group in ((0, 0), (36, 10), (5, 7)):
        found = torch.zeros(m, dtype=torch.bfloat16)
        for plane in range(n):
            chunk, lane = divmod(group, 8)
            found[int(index[plane, chunk, row]) >> 4 * lane & 15] += values[plane, chunk, row, lane]
        assert torch.equal(found, weight[row, group * m : (group + 1) * m])


def test_packed_weight_takes_the_bytes_it_should():
    for pattern, bits in (("2:4", 10), ("1:4", 5), ("1:8", 2.5), ("1:16", 1.25)):
        values, index = triton_decode.pack(torch.zeros(64, 1024, dtype=torch.bfloat16), pattern)
        assert values.nbytes + index.nbytes == 64 * 1024 * bits / 8


def test_what_cannot_be_packed():
    with pytest.raises(ViolationError, match=r"\[1, 8:12\] with 3 non-zeros"):
        triton_decode.pack(
            torch.eye(2, 16)[[0, 0]] + torch.tensor([[0.0], [1.0]]) * (torch.arange(16) // 3 == 3), "2:4"
        )
    with pytest.raises(PatternError, match="12 input channels"):
        triton_decode.pack(torch.zeros(2, 12), "1:8")
    for weight, pattern in ((torch.zeros(2, 4).double(), "2:4"), (torch.zeros(4), "2:4"), (torch.zeros(2, 6), "1:3")):
        with pytest.raises(KernelError, match=r"triton_decode\.pack"):
            triton_decode.pack(weight, pattern)


@pytest.mark.parametrize(
    ("x", "pattern", "outputs", "inputs", "reason"),
    [
        (torch.zeros(65, 8), "2:4", 8, 8, "65 tokens"),
        (torch.zeros(1, 8).double(), "2:4", 8, 8, "float64"),
        (torch.zeros(1, 8), "2:4", 8, 16, "last dimension"),
        (torch.tensor(1.0), "2:4", 8, 8, "last dimension"),
        (torch.zeros(1, 6), "1:3", 8, 6, "group size"),
        (torch.zeros(1, 12), "1:8", 8, 12, "12 input channels"),
        (torch.zeros(1, 2**16), "2:4", 2**17, 2**16, "32-bit"),
        (torch.zeros(1, 8), "2:4", 8, 8, "not on an NVIDIA GPU"),
    ],
)
def test_reasons(x, pattern, outputs, inputs, reason):
    assert reason in triton_decode.obstacle(x, Pattern(pattern), outputs, inputs)
    values, index = triton_decode.pack(torch.zeros(8, 16), "2:4")
    with pytest.raises(KernelError):
        triton_decode.linear(x, values, index, None, 2, 4, 8)


def mismatches() -> list[str]:
    """The errors of operands that do not match; runs in the interpreter's process."""
    x, bias, found = torch.zeros(1, 16), torch.zeros(8), []
    values, index = triton_decode.pack(torch.zeros(8, 16), "2:4")
    for wrong in (
        (x, values, index, bias, 1, 4, 8),
        (x, values, index, bias, 2, 4, 17),
        (x, values.mT, index.mT, bias, 2, 4, 8),
        (x.half(), values, index, bias, 2, 4, 8),
        (x, values, index, bias[:5], 2, 4, 8),
        (x, values.to("meta"), index, bias, 2, 4, 8),
    ):
        try:
            triton_decode.linear(*wrong)
        except KernelError as error:
            found.append(error.wrong)
    return found


def test_operands_that_do_not_belong_together(interpreter):
    packed = "values and index are not a weight of this shape and pattern packed by triton_decode.pack"
    assert interpreter(mismatches) == [
        packed, packed, packed, "the input's dtype is not the weight's", "the bias is not a contiguous [O]",
        "the operands are on several devices",
    ]  # fmt: skip
