"""Operands of the packed operators, and what these should compute: the dense weight in float64, by torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

import nmlearn as nm
from nmlearn.packed.kernels import reference
from nmlearn.packed.modules import Packed, PackedConv2d, PackedLinear

BOTH_LAYOUTS = [
    "2:4",
    "4:8",
    "1:4",
    "2:8",
    "1:8",
    "2:16",
    "1:16",
    "8:16",
    "3:8",
    "3:4",
    "4:4",
    "5:16",
    "1:2",
    "1:1",
    "15:16",
]
TOKENS_ONLY = ["1:32", "2:6", "16:32", "2:3", "1:5", "7:12", "1:64", "24:48"]
LAYOUTS = {"rows": BOTH_LAYOUTS, "tokens": BOTH_LAYOUTS + TOKENS_ONLY}
OF_LINEAR = {**LAYOUTS, "bytes": BOTH_LAYOUTS}
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda y: y, "relu": F.relu, "gelu": F.gelu, "silu": F.silu,
}  # fmt: skip


def sparse(shape: tuple[int, ...], pattern: str, fewer: float = 0.0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Random weights ``[out, in, *kernel]`` in a pattern; a share ``fewer`` of what it allows is zero as well."""
    n, m = nm.Pattern(pattern).n, nm.Pattern(pattern).m
    weight = torch.randn(shape)
    grouped = weight.unflatten(1, (-1, m))  # a view
    grouped.masked_fill_(torch.rand_like(grouped).argsort(2).argsort(2) >= n, 0)
    grouped.masked_fill_(torch.rand_like(grouped) < fewer, 0)
    return (weight / (shape[1] * n / m) ** 0.5).to(dtype)


@dataclass
class Call:
    """One call of an operator: a layer with its dense weight and its inputs."""

    layer: Packed
    weight: Tensor
    x: Tensor
    residual: Tensor | None
    options: dict[str, object] = field(default_factory=dict)  # of F.conv2d

    def packed(self) -> Tensor:
        return self.layer(self.x, self.residual)

    def plain(self, dtype: torch.dtype) -> Tensor:
        """What plain torch computes in this dtype with the dense weight and what the layout makes of the input."""
        x, weight = self._seen().to(dtype), self.weight.to(dtype)
        bias = None if self.layer.bias is None else self.layer.bias.to(dtype)
        y = self._multiply(x, weight, bias)
        y = y if self.residual is None else y + self.residual.to(dtype)
        return ACTIVATIONS[self.layer.activation](y)

    def _multiply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if weight.dim() == 2:
            return F.linear(x, weight, bias)
        # Padded by hand: torch 2.13's own convolution crashes where a whole column of outputs sees only padding.
        height, width = self.options["padding"]  # type: ignore[misc]
        x = F.pad(x, (width, width, height, height))
        return F.conv2d(x, weight, bias, **{**self.options, "padding": 0})

    def _seen(self) -> Tensor:
        if self.layer.layout != "bytes" or not self.x.numel():
            return self.x
        x = self.x.to(torch.promote_types(self.x.dtype, torch.float32))
        q, zero, step = reference.rounded(x.movedim(1, -1) if self.weight.dim() == 4 else x)
        x = (q - zero).double() * step
        return x.movedim(-1, 1) if self.weight.dim() == 4 else x

    def _summed(self) -> float:
        """The largest sum of magnitudes that an output is made of."""
        sums = self._multiply(self.x.double().abs(), self.weight.double().abs(), None)
        return largest(sums) + sum(largest(t) for t in (self.layer.bias, self.residual) if t is not None)

    def check(self, floor: float = 1.0) -> None:
        """Errors against float64 are at most twice plain torch's, or `floor` roundings of what is summed."""
        exact = self.plain(torch.float64)
        y = self.packed()
        assert y.shape == exact.shape
        assert y.dtype == self.x.dtype
        if not y.numel():
            return
        error, theirs = largest(y.double() - exact), largest(self.plain(self.x.dtype).double() - exact)
        scales = torch.float32 if self.layer.layout == "bytes" else self.x.dtype  # of values that are summed exactly
        unit = max(torch.finfo(self.x.dtype).eps, torch.finfo(scales).eps) * self._summed()
        assert error <= max(2 * theirs, floor * unit), f"error {error}, torch's {theirs}, a unit {unit}"


def largest(x: Tensor) -> float:
    return float(x.abs().max())


def linear(
    pattern: str,
    layout: str,
    rows: int = 33,
    channels: int = 0,
    size: tuple[int, ...] = (9,),
    *,
    dtype: torch.dtype = torch.float32,
    bias: bool = True,
    residual: bool = True,
    activation: str = "none",
    int8: bool = False,
    fewer: float = 0.0,
) -> Call:
    """A linear layer on ``[*size, channels]``; channels default to three groups and at least 36."""
    m = nm.Pattern(pattern).m
    channels = channels or m * max(3, -(-36 // m))
    weight = sparse((rows, channels), pattern, fewer, torch.float32 if int8 or layout == "bytes" else dtype)
    layer = PackedLinear(
        weight,
        torch.randn(rows, dtype=dtype) if bias else None,
        pattern,
        layout=layout,
        activation=activation,
        int8=int8,
    )
    # (`.to` leaves int8 values and their scales alone.)
    layer = layer.to(dtype)
    x = torch.randn(*size, channels, dtype=dtype)
    return Call(layer, layer.dense_weight(), x, torch.randn(*size, rows, dtype=dtype) if residual else None)


def conv(
    pattern: str,
    layout: str,
    kernel: tuple[int, int] = (3, 3),
    image: tuple[int, int] = (6, 7),
    *,
    batch: int = 2,
    rows: int = 18,
    channels: int = 0,
    groups: int = 1,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    dtype: torch.dtype = torch.float32,
    bias: bool = True,
    residual: bool = True,
    activation: str = "none",
    int8: bool = False,
    first: bool = False,
) -> Call:
    """A convolution; rows and channels are of one convolution group. Images are channels-last, or -first."""
    m = nm.Pattern(pattern).m
    channels = channels or m * max(1, -(-20 // m))
    weight = sparse(
        (groups * rows, channels, *kernel), pattern, dtype=torch.float32 if int8 or layout == "bytes" else dtype
    )
    b = torch.randn(groups * rows, dtype=dtype) if bias else None
    places = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    layer = PackedConv2d(
        weight,
        b,
        pattern,
        **places,
        layout=layout,
        activation=activation,
        int8=int8,  # type: ignore[arg-type]
    ).to(dtype)
    x = torch.randn(batch, groups * channels, *image, dtype=dtype)
    call = Call(layer, layer.dense_weight(), x if first else x.to(memory_format=torch.channels_last), None, places)
    if residual:
        call.residual = torch.randn_like(call.plain(torch.float64)).to(dtype)
    return call
