"""PackedLinear and PackedConv2d: ordinary modules that store their weight in packed buffers and call one operator.

They are for inference: ``deepcopy``, ``state_dict``, pickle, safetensors, ``.to(dtype)``, torch.autocast, torch.compile
and torch.export work as for any module; gradients are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

import torch
from torch import Tensor

from nmlearn.errors import KernelError
from nmlearn.maths.pattern import Pattern
from nmlearn.packed import kernels, states
from nmlearn.packed.kernels import layouts, reference
from nmlearn.packed.kernels.checks import LARGEST
from nmlearn.packed.kernels.layouts import Form, Layout
from nmlearn.packed.replacement import Conv2dReplacement, Replacement


class Packed(Replacement):
    """Base of both.

    Attributes:
        pattern: N:M of the weight.
        layout: "rows", "tokens" or "bytes", see :mod:`nmlearn.packed.kernels.layouts`.
        activation: "none", "relu", "gelu" or "silu", applied to the output.
        values, index: buffers, the packed weight; their shapes are :func:`nmlearn.packed.kernels.layouts.sizes`.
        scale: float32 buffer ``[rows]`` for int8 values, or None; for "bytes" ``[2, rows]``, with the sums of
            their values.
        folded: whether a batch norm was folded into weight and bias.
        bias: buffer ``[rows]`` in the dtype of the activations, or None.
    """

    values: Tensor
    index: Tensor
    scale: Tensor | None
    bias: Tensor | None
    folded = False

    def __init__(
        self, weight: Tensor, bias: Tensor | None, form: Form, layout: Layout, activation: str, int8: bool, name: str
    ):
        super().__init__()
        for key, given, known in (
            ("layout", layout, get_args(Layout)), ("activation", activation, kernels.ACTIVATIONS),
        ):  # fmt: skip
            if given not in known:
                fix = f"choose from {', '.join(known)}"
                raise KernelError(where=name, given=f"{key}={given!r}", wrong=f"there is no such {key}", fix=fix)
        self.form, self.layout, self.activation = form, layout, activation
        if bias is not None and tuple(bias.shape) != (self.rows,):
            given = f"a bias of shape {tuple(bias.shape)}"
            raise KernelError(
                where=name, given=given, wrong=f"the weight has {self.rows} outputs", fix="check the bias"
            )
        scale = None
        if int8 or layout == "bytes":
            weight, scale = quantized(weight, name)
        if scale is not None and layout == "bytes":
            scale = torch.stack([scale, weight.flatten(1).sum(1).to(scale.dtype)])
        values, index = layouts.pack(weight, form, layout, name)
        self.register_buffer("values", values)
        self.register_buffer("index", index)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", None if bias is None else bias.detach().clone())

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse a layout or activation that is no text; which text it is, every call checks."""
        if name in ("layout", "activation") and not isinstance(value, str):
            given, wrong = f"{name}={value!r}", f"it must be the name of a {name}"
            raise KernelError(where=type(self).__name__, given=given, wrong=wrong, fix="give a name")
        super().__setattr__(name, value)

    @property
    def pattern(self) -> Pattern:
        return self.form.pattern

    @property
    def rows(self) -> int:
        return self.form.groups * self.form.rows

    def dense_weight(self) -> Tensor:
        """The weight as it was before packing (int8 values times their scale), in the dense shape."""
        return reference.dense(self.values, self.index, self.scale, self.form, self.layout)

    def dense_state(self, name: str) -> dict[str, Tensor]:
        """The state of the dense layer, "weight" and perhaps "bias": what :func:`nmlearn.save` stores.

        Args:
            name: the weight's name, for errors.

        Raises:
            StateError: the layer was given other tensors than the dense one has: int8 values, or a folded batch norm.
        """
        if self.folded or self.scale is not None:
            wrong = "a batch norm was folded into it" if self.folded else "its values were rounded to int8"
            raise states.not_recoverable(name, self, wrong)
        return super().dense_state(name)

    def weight_bytes(self) -> int:
        """The bytes of values, index and scale."""
        buffers = [self.values, self.index, *([] if self.scale is None else [self.scale])]
        return sum(buffer.nbytes for buffer in buffers)

    def extra_repr(self) -> str:
        shape = "x".join(str(length) for length in self.form.shape)
        dtype = str(self.values.dtype).removeprefix("torch.")
        act = "" if self.activation == "none" else f", activation={self.activation}"
        return f"{shape}, pattern={self.pattern}, {dtype}, layout={self.layout}, bias={self.bias is not None}{act}"

    def _run(self, x: Tensor, residual: Tensor | None, images: bool, *places: int) -> Tensor:
        """The operator with this layer's arguments; places are kernel, stride, padding and dilation."""
        form, buffers = self.form, self._buffers  # read directly: attributes of modules are slow
        n, m, rows = form.pattern.n, form.pattern.m, form.groups * form.rows
        return kernels.packed(
            (x, buffers["values"], buffers["index"], buffers["scale"], buffers["bias"], residual),
            (n, m, rows, form.groups, images, *places, self.layout, self.activation),
        )

    def misplaced(self, state: Mapping[str, Tensor]) -> str:
        """Why the layer cannot have the index in a state; empty if it can, or if there is none."""
        index = state.get("index")
        if index is None or index.is_meta:
            return ""
        fits = layouts.belongs(self.values, index.to(self.index.dtype), self.form, self.layout)
        return "" if fits else states.misplaced(f"{self.form.pattern} weight in the layout {self.layout}")

    def _load_from_state_dict(self, state: Any, prefix: str, metadata: Any, strict: bool, *found: Any) -> None:
        """Load all buffers, or none where one is refused."""
        if states.loads_whole(self, state, prefix, strict, *found):
            super()._load_from_state_dict(state, prefix, metadata, strict, *found)

    def _apply(self, fn: Any, recurse: bool = True) -> Packed:
        """`.to(bfloat16)` converts the values and the bias; the scales of int8 values stay float32."""
        scale = self.scale
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if scale is not None and self.scale is not None and self.scale.dtype != torch.float32:
            self.scale = scale.to(self.scale.device)
        return self


class PackedLinear(Packed):
    """A linear layer with a packed weight.

    Args:
        weight: ``[out, in]``, at most N non-zeros in every M along the inputs.
        bias: ``[out]`` or None.
        pattern: N:M; M divides ``in``.
        layout: "rows" and "bytes" need an M that divides 16. "bytes" stores int8 values and also rounds
            activations, to 7 bits in each token of each call: fastest, not exact. A token with an infinite or NaN value
            gives NaN.
        activation: applied to the output.
        int8: store values as int8 with one scale per row (layout "rows").
        name: the weight's name, for errors.

    Raises:
        ViolationError: the weight breaks the pattern; PatternError: it cannot have the layout. Both by name.
        KernelError: an argument is wrong otherwise; by name.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        pattern: Pattern | str,
        *,
        layout: Layout = "rows",
        activation: str = "none",
        int8: bool = False,
        name: str = "weight",
    ):
        form = layouts.form(weight, Pattern(pattern), 1, name)
        if form.kernel:
            fix = "use PackedConv2d"
            raise KernelError(where=name, given=tuple(weight.shape), wrong="a linear weight is [out, in]", fix=fix)
        super().__init__(weight, bias, form, layout, activation, int8, name)
        self.in_features, self.out_features = form.channels, form.rows

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """``[..., in] -> [..., out]``; the residual, of the output's shape, is added before the activation."""
        if not isinstance(x, Tensor) or x.is_nested or x.dim() < 1 or x.shape[-1] != self.in_features:
            raise _unexpected(self, x, f"[..., {self.in_features}]")
        return self._run(x, residual, False, *kernels.LINEAR)


class PackedConv2d(Packed, Conv2dReplacement):
    """A convolution with a packed weight; groups run along the input channels of one kernel position.

    Args:
        weight: ``[out, in / groups, kernel height, kernel width]``.
        bias: ``[out]`` or None.
        pattern: N:M; M divides ``in / groups``.
        stride, padding, dilation, groups: as torch.nn.Conv2d; padding in pixels, with zeros.
        layout, activation, int8, name: as :class:`PackedLinear`.

    Raises:
        ViolationError: the weight breaks the pattern; PatternError: it cannot have the layout. Both by name.
        KernelError: an argument is wrong otherwise; by name.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        pattern: Pattern | str,
        *,
        stride: tuple[int, int] = (1, 1),
        padding: tuple[int, int] = (0, 0),
        dilation: tuple[int, int] = (1, 1),
        groups: int = 1,
        layout: Layout = "rows",
        activation: str = "none",
        int8: bool = False,
        name: str = "weight",
    ):
        form = layouts.form(weight, Pattern(pattern), groups, name)
        if len(form.kernel) != 2:
            wrong = "the weight of a 2-D convolution is [out, in / groups, height, width]"
            raise KernelError(where=name, given=tuple(weight.shape), wrong=wrong, fix="leave this weight dense")
        super().__init__(weight, bias, form, layout, activation, int8, name)
        self.in_channels, self.out_channels, self.kernel_size = groups * form.channels, self.rows, form.kernel
        self.stride, self.dilation = _pair(name, "stride", stride, 1), _pair(name, "dilation", dilation, 1)
        self.padding = _pair(name, "padding", padding, 0)

    @property
    def groups(self) -> int:
        return self.form.groups

    def __setattr__(self, name: str, value: Any) -> None:
        """Whenever stride, padding or dilation is set, check that it is two whole numbers."""
        least = {"stride": 1, "padding": 0, "dilation": 1}.get(name)
        value = value if least is None else _pair("PackedConv2d", name, value, least)
        super().__setattr__(name, value)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """``[batch, in, height, width] -> [batch, out, ...]``; the residual is added before the activation."""
        if not isinstance(x, Tensor) or x.is_nested or x.dim() != 4 or x.shape[1] != self.in_channels:
            raise _unexpected(self, x, f"[batch, {self.in_channels}, height, width]")
        return self._run(x, residual, True, *self.form.kernel, *self.stride, *self.padding, *self.dilation)


def _unexpected(layer: Packed, x: object, expected: str) -> KernelError:
    """The error for an input that the layer does not take."""
    given = f"type {type(x).__name__}"
    if isinstance(x, Tensor):
        given = "nested layout" if x.is_nested else f"shape {tuple(x.shape)}"
    wrong = f"the layer expects {expected}"
    return KernelError(where=type(layer).__name__, given=f"x of {given}", wrong=wrong, fix="check x")


def _pair(name: str, key: str, given: object, least: int) -> tuple[int, int]:
    pair = tuple(given) if isinstance(given, (tuple, list)) else (given, given)
    if len(pair) != 2 or not all(isinstance(side, int) and least <= side <= LARGEST for side in pair):
        wrong = f"it must be two whole numbers from {least} to {LARGEST}"
        raise KernelError(where=name, given=f"{key}={given!r}", wrong=wrong, fix="give both in pixels")
    return pair[0], pair[1]


def quantized(weight: Tensor, name: str = "weight") -> tuple[Tensor, Tensor]:
    """Int8 values and float32 scales of the rows, symmetric: a row's largest magnitude becomes 127.

    Raises:
        KernelError: infinite or NaN weights, which int8 cannot represent; by name.
    """
    largest = weight.detach().float().flatten(1).abs().amax(1)
    if not bool(largest.isfinite().all()):
        fix, wrong = "keep the values as they are: int8=False", "int8 cannot represent them"
        raise KernelError(where=name, given="infinite or NaN weights", wrong=wrong, fix=fix)
    scale = largest / 127
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))  # rows of zeros, or nearly
    steps = weight.detach().float() / scale.view(-1, *[1] * (weight.dim() - 1))
    return steps.round().clamp(-127, 127).to(torch.int8), scale
