"""What 2:4 on sparse tensor cores supports and refuses, and its arithmetic of shapes, checked without a GPU."""

import pytest
import torch
import torch.nn.functional as F

from nmlearn.errors import KernelError, ViolationError
from nmlearn.maths.pattern import Pattern
from nmlearn.packed.kernels import semi_structured


def reason(x, pattern, outputs, inputs, backend="cusparselt"):
    return semi_structured.obstacle(x, Pattern(pattern), outputs, inputs, backend)


@pytest.mark.parametrize("pattern", ["2:4", "1:4", "2:8", "1:8", "2:16", "1:16", "1:2", "2:12"])
def test_subsets_of_2_4(pattern):
    assert semi_structured.within_hardware(Pattern(pattern))


@pytest.mark.parametrize("pattern", ["4:8", "3:4", "3:8", "2:2", "1:1", "1:3", "2:6"])
def test_not_subsets_of_2_4(pattern):
    assert not semi_structured.within_hardware(Pattern(pattern))
    assert "not a subset of 2:4" in reason(torch.zeros(1, 96), pattern, 32, 96)


def test_reasons():
    half = torch.zeros(2, 48, dtype=torch.float16)
    assert "NVIDIA" in reason(half, "2:4", 16, 48)
    assert "24 outputs, not a multiple of 16" in reason(half, "2:4", 24, 48)
    assert "16 outputs, not a multiple of 32" in reason(half, "2:4", 16, 48, "cutlass")
    assert "48 inputs, not a multiple of 64" in reason(half, "2:4", 32, 48, "cutlass")
    assert "last dimension" in reason(half, "2:4", 32, 64)
    assert "float32" in reason(half.float(), "2:4", 16, 48)
    assert "input channels" in reason(torch.zeros(2, 20), "1:16", 16, 20)


def test_pack_refuses():
    for weight in (torch.zeros(16, 16, dtype=torch.float16), torch.zeros(16)):
        with pytest.raises(KernelError, match=r"semi_structured\.pack"):
            semi_structured.pack(weight)


def test_weight_that_breaks_the_pattern(monkeypatch):
    monkeypatch.setattr(semi_structured, "_unavailable", lambda device, backend: "")
    with pytest.raises(ViolationError, match=r"\[1, 12:16\]"):
        semi_structured.pack((torch.arange(16) > 12).half() * (torch.arange(16) == 1).half()[:, None])


@pytest.mark.parametrize("stride", [1, 2, (1, 3)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_convolution_is_a_linear_layer_over_pixels(stride, layout):
    # A dense weight in the place of a packed one: the product is torch's, the shapes around it are ours.
    x, weight, bias = torch.randn(2, 8, 5, 7), torch.randn(6, 8), torch.randn(6)
    pixels = semi_structured.pixels(x.to(memory_format=layout), stride)
    out = semi_structured.linear(pixels, weight, bias).permute(0, 3, 1, 2)
    torch.testing.assert_close(out, F.conv2d(x, weight[:, :, None, None], bias, stride))
    assert out.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("shape", [(8,), (3, 8), (2, 0, 8), (0, 8), (2, 3, 8)])
def test_linear_keeps_leading_dimensions(shape):
    x, weight = torch.randn(shape), torch.randn(6, 8)
    torch.testing.assert_close(semi_structured.linear(x, weight, None), F.linear(x, weight))


def test_operands_that_do_not_belong_together():
    weight = torch.randn(6, 8)
    for x in (torch.randn(2, 7), torch.randn(2, 8).half(), torch.tensor(1.0)):
        with pytest.raises(KernelError, match="the weight is"):
            semi_structured.linear(x, weight, None)
