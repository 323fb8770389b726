"""Infinities, NaN, large numbers and signed zeros: what the packed operators do with them, and what dense layers do."""

import pytest
import torch
import torch.nn.functional as F

import operands
from nmlearn.packed.modules import PackedConv2d, PackedLinear

PATTERNS = ["2:4", "1:4", "1:16", "8:16", "4:4"]
STRANGE = [float("inf"), float("-inf"), float("nan")]
FLOAT_TYPES = [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("value", STRANGE)
@pytest.mark.parametrize("channels", [16, 48, 36, 20])
@pytest.mark.parametrize("layout", operands.LAYOUTS)
def test_input_that_no_weight_keeps(isa: str, layout: str, channels: int, value: float) -> None:
    """With full groups, rows that keep the input are as in a dense layer, the others as if it were finite."""
    for pattern in ("2:4", "1:4", "3:4"):
        for place in (0, 1, channels - 1, channels // 2):
            weight = operands.sparse((33, channels), pattern)
            x = torch.randn(3, channels)
            finite = F.linear(x, weight)
            x[1, place] = value
            keeps = weight[:, place] != 0
            y = PackedLinear(weight, None, pattern, layout=layout)(x)  # type: ignore[arg-type]
            torch.testing.assert_close(y[:, ~keeps], finite[:, ~keeps])
            torch.testing.assert_close(y[:, keeps], F.linear(x, weight)[:, keeps].where(x.isfinite().all(1)[:, None], (
                weight[keeps, place] * value).expand(3, -1)), equal_nan=True)  # fmt: skip
            assert y[0].isfinite().all()
            assert y[2].isfinite().all()


@pytest.mark.parametrize("layout", operands.LAYOUTS)
def test_groups_with_room(isa: str, layout: str) -> None:
    """Groups with fewer than N non-zeros: finite or, as in a dense layer, NaN; rows that keep the input as in dense."""
    weight, x = operands.sparse((33, 36), "2:4", fewer=0.6), torch.randn(1, 36)
    for place in range(36):
        strange = x.clone()
        strange[0, place] = torch.inf
        y = PackedLinear(weight, None, "2:4", layout=layout)(strange)[0]  # type: ignore[arg-type]
        keeps = weight[:, place] != 0
        assert torch.equal(y[keeps], weight[keeps, place] * torch.inf)
        plain = F.linear(x, weight)[0]
        as_if_finite = torch.isclose(y, plain, atol=1e-5)
        assert (as_if_finite | y.isnan())[~keeps].all()


@pytest.mark.parametrize("dtype", FLOAT_TYPES)
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("layout", operands.LAYOUTS)
def test_strange_weights(isa: str, layout: str, pattern: str, dtype: torch.dtype) -> None:
    for value in STRANGE:
        weight = operands.sparse((18, 48), pattern, dtype=dtype)
        row, place = (int(i[0]) for i in weight.nonzero(as_tuple=True))
        weight[row, place] = value
        x = torch.rand(5, 48, dtype=dtype) + 0.1
        y = PackedLinear(weight, None, pattern, layout=layout)(x)  # type: ignore[arg-type]
        torch.testing.assert_close(y, F.linear(x, weight), rtol=0.02, atol=0.02, equal_nan=True)


@pytest.mark.parametrize("layout", operands.LAYOUTS)
def test_infinite_pixel_reaches_its_neighbours_only(isa: str, layout: str) -> None:
    weight, x = operands.sparse((18, 20, 3, 3), "1:4"), torch.randn(2, 20, 8, 9)
    weight[:, 4:8] = 0
    weight[:, 4] = 1.0
    layer = PackedConv2d(weight, None, "1:4", padding=(1, 1), layout=layout)  # type: ignore[arg-type]
    finite = layer(x)
    x[0, 4, 3, 3] = torch.inf
    y = layer(x)
    assert y[0, :, 2:5, 2:5].isposinf().all()
    y[0, :, 2:5, 2:5] = finite[0, :, 2:5, 2:5]
    assert torch.equal(y, finite)
    x[0, 5, 3, 3] = torch.nan  # which no weight keeps
    y = layer(x)
    assert y[0, :, 2:5, 2:5].isposinf().all()


@pytest.mark.parametrize("dtype", FLOAT_TYPES)
@pytest.mark.parametrize("activation", operands.ACTIVATIONS)
@pytest.mark.parametrize("layout", operands.LAYOUTS)
def test_activations_at_extremes(isa: str, layout: str, activation: str, dtype: torch.dtype) -> None:
    """Of a layer that passes its input on, against torch's own activation."""
    numbers = [0.0, -0.0, 1.0, -1.0, 1e-30, -1e-30, 10, -10, 88, -88, 100, -100, 1e5, -1e5, 3e38, -3e38, *STRANGE]
    x = torch.tensor([*numbers, *torch.linspace(-12, 12, 501).tolist()], dtype=dtype)[:, None] * torch.eye(16)[0]
    weight = torch.eye(16, dtype=dtype)[:1].repeat(17, 1)
    x = x.to(dtype).nan_to_num_(nan=0, posinf=0, neginf=0)
    x[: len(numbers), 0] = torch.tensor(numbers, dtype=dtype)
    y = PackedLinear(weight, None, "1:16", layout=layout, activation=activation)(x)  # type: ignore[arg-type]
    expected = operands.ACTIVATIONS[activation](x[:, :1]).expand(-1, 17)
    if activation == "silu":  # its limit at -inf is 0; torch computes -inf / inf = NaN
        expected = expected.masked_fill(x[:, :1] == -torch.inf, 0)
    rtol = 1e-6 if dtype == torch.float32 else 8e-3
    torch.testing.assert_close(y, expected, rtol=rtol, atol=5e-7, equal_nan=True)


@pytest.mark.parametrize("dtype", FLOAT_TYPES)
@pytest.mark.parametrize("layout", operands.LAYOUTS)
def test_nothing_but_zeros(isa: str, layout: str, dtype: torch.dtype) -> None:
    """Zero weights and negative zeros, with a bias: exactly the bias."""
    for zero in (0.0, -0.0):
        bias = torch.randn(20, dtype=dtype)
        layer = PackedLinear(torch.full((20, 32), zero, dtype=dtype), bias, "2:4", layout=layout)  # type: ignore[arg-type]
        assert torch.equal(layer(torch.randn(7, 32, dtype=dtype)), bias.expand(7, -1))
