"""PackedConv2d against float64: kernels, strides, paddings, dilations, groups, image sizes and memory formats."""

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import operands

SHAPES: dict[str, dict[str, Any]] = {
    "1x1": {"kernel": (1, 1), "image": (5, 9)},
    "1x1 stride 2": {"kernel": (1, 1), "image": (7, 10), "stride": (2, 2)},
    "1x1 padded": {"kernel": (1, 1), "padding": (1, 2)},
    "1x1 on one pixel": {"kernel": (1, 1), "image": (1, 1), "batch": 5},
    "1x1 stride of a column": {"kernel": (1, 1), "image": (9, 1), "stride": (1, 2)},
    "3x3": {},
    "3x3 same": {"padding": (1, 1), "image": (7, 19)},
    "3x3 stride 2": {"padding": (1, 1), "stride": (2, 2), "image": (9, 12)},
    "3x3 stride 3x1": {"stride": (3, 1)},
    "3x3 dilated": {"dilation": (2, 3), "padding": (2, 3), "image": (9, 10)},
    "3x3 on one pixel": {"padding": (1, 1), "image": (1, 1)},
    "3x3 far padding": {"padding": (5, 4), "image": (2, 3), "stride": (2, 3)},
    "7x7": {"kernel": (7, 7), "padding": (3, 3), "stride": (2, 2), "image": (14, 11)},
    "9x9": {"kernel": (9, 9), "padding": (4, 4), "image": (9, 5), "rows": 5},
    "1x3": {"kernel": (1, 3), "padding": (0, 1)},
    "3x1": {"kernel": (3, 1), "padding": (1, 0), "stride": (1, 2)},
    "groups": {"groups": 3, "padding": (1, 1)},
    "groups 1x1": {"groups": 2, "kernel": (1, 1), "rows": 16, "image": (6, 6)},
    "one row": {"rows": 1, "padding": (1, 1)},
    "rows 16": {"rows": 16, "padding": (1, 1)},
    "rows 17": {"rows": 17, "padding": (1, 1)},
    "batch 0": {"batch": 0},
    "width 15": {"image": (2, 15), "kernel": (1, 1)},
    "width 16": {"image": (3, 16), "padding": (1, 1), "batch": 1},
    "width 18": {"image": (3, 18), "batch": 1},
    "width 33": {"image": (2, 33), "padding": (1, 1), "batch": 1},
    "4x4 images": {"image": (4, 4), "padding": (1, 1), "batch": 3},
}
FLOAT_TYPES = (torch.float32, torch.bfloat16)


@pytest.mark.parametrize("first", [False, True], ids=["channels last", "channels first"])
@pytest.mark.parametrize("layout", operands.LAYOUTS)
@pytest.mark.parametrize("name", SHAPES)
def test_shapes(isa: str, layout: str, name: str, first: bool) -> None:
    for pattern, dtype in (("2:4", torch.float32), ("1:16", torch.float32), ("1:4", torch.bfloat16)):
        call = operands.conv(pattern, layout, **SHAPES[name], dtype=dtype, first=first)
        call.check(2)
        last = layout == "rows" or not call.x.is_contiguous()
        assert call.packed().is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    operands.conv("2:8", "rows", **SHAPES[name], first=first, int8=True).check(2)


@pytest.mark.parametrize("layout", operands.LAYOUTS)
def test_patterns(isa: str, layout: str) -> None:
    for pattern in operands.LAYOUTS[layout]:
        for dtype in FLOAT_TYPES:
            operands.conv(pattern, layout, padding=(1, 1), dtype=dtype, first=pattern > "2:4").check(2)


@pytest.mark.parametrize("activation", operands.ACTIVATIONS)
@pytest.mark.parametrize("layout", operands.LAYOUTS)
def test_what_follows_the_sum(isa: str, layout: str, activation: str) -> None:
    for bias, residual in ((False, False), (True, False), (False, True)):
        for first in (False, True):
            for dtype in FLOAT_TYPES:
                options: dict[str, Any] = {"bias": bias, "residual": residual, "activation": activation}
                operands.conv("2:4", layout, padding=(1, 1), first=first, dtype=dtype, **options).check(2)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("layout", operands.LAYOUTS)
def test_threads(isa: str, layout: str, threads: int) -> None:
    torch.set_num_threads(threads)
    for first in (False, True):
        operands.conv("1:4", layout, (3, 3), (14, 14), padding=(1, 1), rows=40, channels=32, first=first).check()
        operands.conv("1:4", layout, (1, 1), (3, 3), batch=1, rows=200, channels=32, first=first).check()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("layout", operands.LAYOUTS)
def test_types_without_kernel(isa: str, layout: str, first: bool, dtype: torch.dtype) -> None:
    operands.conv("2:4", layout, padding=(1, 1), dtype=dtype, first=first).check()


def strided(x: torch.Tensor, order: tuple[int, ...]) -> torch.Tensor:
    """The same numbers with the dimensions in another order in memory, and gaps."""
    room = torch.zeros(*(x.shape[i] + 1 for i in order), 2, dtype=x.dtype)
    view = room[..., 1].permute(*(order.index(i) for i in range(4)))
    for axis in range(4):
        view = view.narrow(axis, 1, x.shape[axis])
    return view.copy_(x)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 3, 1), (3, 2, 1, 0), (1, 0, 3, 2)])
@pytest.mark.parametrize("layout", operands.LAYOUTS)
def test_strided_inputs(isa: str, layout: str, order: tuple[int, ...]) -> None:
    for image in ((5, 6), (1, 1), (1, 6)):
        for batch in (1, 3):
            call = operands.conv("2:4", layout, image=image, padding=(1, 1), batch=batch)
            assert call.residual is not None
            call.x, call.residual = strided(call.x, order), strided(call.residual, order)
            call.check(2)


@pytest.mark.parametrize("layout", operands.LAYOUTS)
def test_strides_of_dimensions_of_one(isa: str, layout: str) -> None:
    """A dimension of one element may carry any stride."""
    call = operands.conv("2:4", layout, (1, 1), (4, 5), batch=1)
    assert call.residual is not None
    call.residual = torch.randn(4, 5, 18).permute(2, 0, 1).unsqueeze(0)
    call.x = torch.randn(4, 5, 20).permute(2, 0, 1).unsqueeze(0)
    call.check(2)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_call(isa: str, data: st.DataObject) -> None:
    layout = data.draw(st.sampled_from(list(operands.LAYOUTS)))
    pairs = {name: st.tuples(st.integers(1, 3), st.integers(1, 3)) for name in ("kernel", "stride", "dilation")}
    pairs["padding"] = st.tuples(st.integers(0, 3), st.integers(0, 3))
    places = {name: data.draw(pair) for name, pair in pairs.items()}
    image = data.draw(st.tuples(st.integers(1, 20), st.integers(1, 20)))
    reach = [places["dilation"][i] * (places["kernel"][i] - 1) + 1 - 2 * places["padding"][i] for i in range(2)]
    assume(image[0] >= reach[0] and image[1] >= reach[1])
    call = operands.conv(
        data.draw(st.sampled_from(operands.LAYOUTS[layout])),
        layout,
        image=image,
        **places,
        batch=data.draw(st.integers(1, 3)),
        rows=data.draw(st.integers(1, 35)),
        groups=data.draw(st.integers(1, 3)),
        dtype=data.draw(st.sampled_from(FLOAT_TYPES)),
        bias=data.draw(st.booleans()),
        residual=data.draw(st.booleans()),
        activation=data.draw(st.sampled_from(list(operands.ACTIVATIONS))),
        int8=layout == "rows" and data.draw(st.booleans()),
        first=data.draw(st.booleans()),
    )
    torch.set_num_threads(data.draw(st.sampled_from([1, 2])))
    call.check(4)


@pytest.mark.parametrize("layout", operands.LAYOUTS)
def test_without_library(no_kernels: None, layout: str) -> None:
    for first in (False, True):
        operands.conv("2:4", layout, padding=(1, 1), groups=2, first=first, activation="relu").check()
