"""The layout "bytes": the kernels equal the reference bit for bit, and what is rounded is within what is said of it."""

import pytest
import torch
from torch import Tensor

import operands
from nmlearn.errors import KernelError, PatternError
from nmlearn.maths.pattern import Pattern
from nmlearn.packed.kernels import layouts, reference
from nmlearn.packed.kernels.checks import LINEAR, Operands, Settings
from nmlearn.packed.modules import PackedConv2d, PackedLinear, quantized

EVERY = [f"{n}:{m}" for m in (1, 2, 4, 8, 16) for n in range(1, m + 1)]
STRANGE = [float("inf"), float("-inf"), float("nan")]


def by_reference(layer: PackedLinear, x: Tensor) -> Tensor:
    """Without bias and residual, after which kernels may contract a product and a sum."""
    settings = Settings(layer.pattern.n, layer.pattern.m, layer.rows, 1, False, *LINEAR, "bytes", "none")
    return reference.call(Operands(x, layer.values, layer.index, layer.scale, None, None), settings, layer.form)


def made(pattern: str, rows: int, channels: int) -> PackedLinear:
    return PackedLinear(operands.sparse((rows, channels), pattern), None, pattern, layout="bytes")


@pytest.mark.parametrize("pattern", EVERY)
def test_equal_to_the_reference(isa: str, pattern: str) -> None:
    m = Pattern(pattern).m
    for rows, groups, tokens in ((1, 1, 1), (8, 3, 2), (33, 7, 5), (31, 16, 9), (100, 5, 16), (64, 33, 70)):
        layer = made(pattern, rows, groups * m)
        for dtype in (torch.float32, torch.bfloat16):
            x = torch.randn(tokens, groups * m).to(dtype) * torch.logspace(-12, 12, tokens)[:, None].to(dtype)
            assert torch.equal(layer(x), by_reference(layer, x))


@pytest.mark.parametrize("threads", [1, 2])
def test_numbers_of_tokens_on_threads(isa: str, threads: int) -> None:
    torch.set_num_threads(threads)
    for pattern in ("2:4", "1:8", "1:16"):
        layer = made(pattern, 70, 80)
        for tokens in (0, *range(1, 20), 31, 32, 63, 64, 65, 200, 517):
            x = torch.randn(tokens, 80)
            assert torch.equal(layer(x), by_reference(layer, x))


def test_extremes_do_not_saturate(isa: str) -> None:
    """All products as large as they can be, of both signs; and sums of one sign over many inputs."""
    for sign in (1, -1):
        weight = torch.full((8, 4096), 127.0 * sign)
        layer = PackedLinear(weight, None, "4:4", layout="bytes")
        x = torch.ones(3, 4096)
        assert torch.equal(layer(x), torch.full((3, 8), 127.0 * sign * 4096))
        assert torch.equal(layer(-x), torch.full((3, 8), -127.0 * sign * 4096))


def test_whole_numbers_are_exact(isa: str) -> None:
    """Activations over 127 steps of 1 and weights up to 127 are not rounded."""
    weight = operands.sparse((48, 64), "2:4").sign() * torch.randint(1, 128, (48, 64))
    weight[:, 0], weight[:, 1:4] = 127, 0
    x = torch.randint(-50, 78, (9, 64)).float()
    x[:, 0], x[:, 1] = -50, 77
    y = PackedLinear(weight, None, "2:4", layout="bytes")(x)
    torch.testing.assert_close(y, x @ weight.T, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("value", STRANGE)
def test_a_token_with_a_value_that_is_not_finite_is_nan(isa: str, value: float) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        for channels, place in ((36, 35), (48, 0), (80, 64)):
            layer, x = made("2:4", 40, channels), torch.randn(5, channels).to(dtype)
            expected = layer(x)
            x[3, place] = value
            y = layer(x)
            assert y[3].isnan().all()
            others = [0, 1, 2, 4]
            assert torch.equal(y[others], expected[others])
            assert torch.equal(y, by_reference(layer, x)) or torch.equal(y.isnan(), by_reference(layer, x).isnan())


def test_tokens_of_zeros_and_of_the_largest_numbers(isa: str) -> None:
    layer = made("1:4", 20, 48)
    largest = torch.finfo(torch.float32).max
    x = torch.stack([torch.zeros(48), torch.full((48,), 1e-35), torch.randn(48).sign() * largest, torch.ones(48)])
    y = layer(x)
    assert torch.equal(y[:2], torch.zeros(2, 20))
    assert not y[2].isnan().any()
    assert torch.equal(y, by_reference(layer, x))
    q, zero, step = reference.rounded(x)
    torch.testing.assert_close(((q - zero).double() * step)[2], x[2].double(), rtol=0.02, atol=0)


def test_rows_of_zeros(isa: str) -> None:
    weight = operands.sparse((20, 48), "1:4")
    weight[3] = 0
    y = PackedLinear(weight, None, "1:4", layout="bytes")(torch.randn(4, 48))
    assert torch.equal(y[:, 3], torch.zeros(4))


def test_rounding_is_within_half_a_step() -> None:
    x = torch.randn(50, 64) + torch.linspace(-3, 3, 50)[:, None]
    q, zero, step = reference.rounded(x)
    assert q.min() >= 0 and q.max() <= 127
    assert torch.equal(q, q.round()) and torch.equal(zero, zero.round())
    assert (((q - zero) * step - x).abs() <= step * 1.001).all()
    assert (((q - zero) * step - x).abs() <= step * 0.501).float().mean() > 0.95  # all but where the top is cut
    torch.testing.assert_close(step[:, 0], (x.amax(1).clamp(min=0) - x.amin(1).clamp(max=0)) / 127)


def test_errors_of_a_layer_are_small() -> None:
    for pattern in ("2:4", "1:16"):
        weight, x = operands.sparse((64, 768), pattern), torch.randn(32, 768)
        y, exact = PackedLinear(weight, None, pattern, layout="bytes")(x), x @ weight.T
        assert (y - exact).norm() / exact.norm() < 0.03


@pytest.mark.parametrize("pattern", EVERY)
def test_packing_loses_nothing(pattern: str) -> None:
    m = Pattern(pattern).m
    for rows, groups in ((0, 2), (1, 1), (9, 5), (33, 17), (64, 64 // m or 1)):
        weight, _ = quantized(operands.sparse((rows, groups * m), pattern, fewer=0.2))
        form = layouts.form(weight.float(), Pattern(pattern))
        values, index = layouts.pack(weight, form, "bytes")
        assert (tuple(values.shape), tuple(index.shape)) == layouts.sizes(form, "bytes")
        assert torch.equal(layouts.unpack(values, index, form, "bytes"), weight)
        assert layouts.belongs(values, index, form, "bytes")


@pytest.mark.parametrize("pattern", ["1:4", "2:4", "1:8", "1:16"])
def test_convolutions_of_single_pixels(isa: str, pattern: str) -> None:
    for first in (False, True):
        call = operands.conv(pattern, "bytes", (1, 1), first=first, rows=40, channels=48)
        call.check(2)


def test_refusals() -> None:
    weight = operands.sparse((8, 12), "2:6")
    with pytest.raises(PatternError, match="byte lanes need a group size that divides 16"):
        PackedLinear(weight, None, "2:6", layout="bytes")
    with pytest.raises(PatternError, match="byte lanes are for linear layers and 1x1"):
        PackedConv2d(operands.sparse((8, 16, 3, 3), "2:4"), None, "2:4", layout="bytes")
    call = operands.conv("2:4", "bytes", (1, 1))
    call.layer.stride = (2, 2)  # type: ignore[assignment]
    with pytest.raises(KernelError, match="without stride and padding"):
        call.layer(call.x)
    layer = made("2:4", 8, 16)
    layer.scale = None
    with pytest.raises(KernelError, match="scale for each row"):
        layer(torch.ones(2, 16))
    form = layouts.Form(Pattern("1:2"), 1, 1, 2**17 + 2, ())
    assert "exact int32 sums" in layouts.refusal("bytes", form)
