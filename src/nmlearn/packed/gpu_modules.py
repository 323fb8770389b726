"""Packed layers for NVIDIA GPUs: plain modules that store their weight in buffers and call one operator each.

``deepcopy``, ``state_dict``, pickle, torch.compile and torch.export work as for any module; gradients are refused. The
buffers are in the kernels' own format: to store a weight for other machines, use nm.save's packed files.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from nmlearn.errors import KernelError
from nmlearn.maths.pattern import Pattern
from nmlearn.packed import kernels, states
from nmlearn.packed.kernels import semi_structured, triton_decode
from nmlearn.packed.replacement import Conv2dReplacement, Replacement


class DecodeLinear(Replacement):
    """A linear layer for 1 to 64 tokens that reads its weight packed (Triton).

    For more than 64 tokens, and on devices without the kernels, every call unpacks the weight: correct, but slower than
    a dense layer.

    Args:
        weight: ``[out, in]``, bfloat16, float16 or float32, at most N non-zeros in every M along the inputs.
        bias: ``[out]`` or None.
        pattern: N:M with M 4, 8 or 16; M divides ``in``.

    Attributes:
        values, index: buffers, see :func:`nmlearn.packed.kernels.triton_decode.pack`.
        bias: buffer ``[out]``, or None.

    Raises:
        KernelError, PatternError, ViolationError: the weight cannot be packed.
    """

    values: Tensor
    index: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None, pattern: Pattern | str):
        super().__init__()
        values, index = triton_decode.pack(weight, pattern)
        self.pattern = Pattern(pattern)
        self.out_features, self.in_features = weight.shape
        self.register_buffer("values", values)
        self.register_buffer("index", index)
        self.register_buffer("bias", None if bias is None else bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in] -> [..., out]``."""
        _check_last(x, self.in_features, "DecodeLinear")
        n, m = self.pattern.n, self.pattern.m
        out: Tensor = kernels.decode_linear(x, self.values, self.index, self.bias, n, m, self.out_features)
        return out

    def misplaced(self, state: Mapping[str, Tensor]) -> str:
        """Why the layer cannot have the index in a state; empty if it can, or if there is none."""
        index = state.get("index")
        if index is None or index.is_meta or triton_decode.belongs(index.to(self.index.dtype), self.pattern):
            return ""
        return states.misplaced(f"{self.pattern} weight")

    def _load_from_state_dict(self, state: Any, prefix: str, metadata: Any, strict: bool, *found: Any) -> None:
        """Load all buffers, or none where one is refused."""
        if states.loads_whole(self, state, prefix, strict, *found):
            super()._load_from_state_dict(state, prefix, metadata, strict, *found)

    def dense_weight(self) -> Tensor:
        """The weight as it was before packing."""
        return triton_decode.unpack(self.values, self.index, self.pattern, self.out_features, self.in_features)

    def weight_bytes(self) -> int:
        """The bytes of values and index."""
        return self.values.nbytes + self.index.nbytes

    def extra_repr(self) -> str:
        dtype = str(self.values.dtype).removeprefix("torch.")
        shape = f"{self.out_features}x{self.in_features}"
        return f"{shape}, pattern={self.pattern}, {dtype}, bias={self.bias is not None}"


class SemiStructured(Replacement):
    """Base of the layers on 2:4 sparse tensor cores.

    The buffers are those of torch's semi-structured tensor. Their order depends on the backend, and possibly on the GPU
    and the version of cuSPARSELt, so a state dict is valid only on identical machines. The dense weight cannot be
    recovered, the dtype cannot change, and off an NVIDIA GPU the layer can be moved and stored but not called.

    Attributes:
        values: buffer, the kept weights; for cuSPARSELt the metadata as well.
        meta: buffer, CUTLASS's metadata, or None.
        bias: buffer ``[out]`` in the weight's dtype, or None.
        backend, algorithm: as in :func:`nmlearn.packed.kernels.semi_structured.pack`.
    """

    values: Tensor
    meta: Tensor | None
    bias: Tensor | None

    def __init__(self, weight_oi: Tensor, bias: Tensor | None, backend: semi_structured.Backend, algorithm: int):
        super().__init__()
        values, meta = semi_structured.parts(semi_structured.pack(weight_oi, backend, algorithm))
        self.backend, self.algorithm = backend, algorithm
        self.outputs, self.inputs = weight_oi.shape
        self.register_buffer("values", values)
        self.register_buffer("meta", meta)
        self.register_buffer("bias", None if bias is None else bias.detach().clone())

    def dense_state(self, name: str) -> dict[str, Tensor]:
        """Refuse to be saved as a dense layer.

        Raises:
            StateError: always, by the given name of the weight.
        """
        raise states.not_recoverable(name, self, f"{self.backend} keeps it in an order of its own")

    def weight_bytes(self) -> int:
        """The bytes of values and metadata."""
        return self.values.nbytes + (0 if self.meta is None else self.meta.nbytes)

    def extra_repr(self) -> str:
        dtype = str(self.values.dtype).removeprefix("torch.")
        return f"{self.outputs}x{self.inputs}, {self.backend}, {dtype}, bias={self.bias is not None}"

    def _product(self, x: Tensor) -> Tensor:
        _check_last(x, self.inputs, type(self).__name__)
        kind = (self.outputs, self.backend, self.algorithm)
        out: Tensor = kernels.semi_structured_linear(x, self.values, self.meta, self.bias, *kind)
        return out

    def _apply(self, fn: Any, recurse: bool = True) -> SemiStructured:
        """Allow `.to(device)`; another dtype would destroy the metadata stored among the values."""
        dtype = fn(self.values[:0]).dtype
        if dtype != self.values.dtype:
            raise KernelError(
                where=type(self).__name__,
                given=f"{dtype} for packed values of {self.values.dtype}",
                wrong="a semi-structured weight keeps its dtype",
                fix="convert the dense model, then pack it again",
            )
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self


class SemiStructuredLinear(SemiStructured):
    """A linear layer on 2:4 sparse tensor cores.

    Args:
        weight: ``[out, in]``, bfloat16 or float16, on an NVIDIA GPU, at most 2 non-zeros in every aligned 4.
        bias: ``[out]`` or None.
        backend, algorithm: see :func:`nmlearn.packed.kernels.semi_structured.pack`.

    Raises:
        KernelError, ViolationError: the weight cannot be packed.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        *,
        backend: semi_structured.Backend = "cusparselt",
        algorithm: int = 0,
    ):
        super().__init__(weight, bias, backend, algorithm)
        self.out_features, self.in_features = weight.shape

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in] -> [..., out]``."""
        return self._product(x)


class SemiStructuredConv2d(SemiStructured, Conv2dReplacement):
    """A 1x1 convolution, without padding and groups, on 2:4 sparse tensor cores.

    Args:
        weight: ``[out, in, 1, 1]``, otherwise as for :class:`SemiStructuredLinear`.
        stride: vertical and horizontal.
        bias, backend, algorithm: as for :class:`SemiStructuredLinear`.

    Raises:
        KernelError, ViolationError: the weight cannot be packed.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        *,
        stride: tuple[int, int] = (1, 1),
        backend: semi_structured.Backend = "cusparselt",
        algorithm: int = 0,
    ):
        if weight.dim() != 4 or tuple(weight.shape[2:]) != (1, 1):
            given = f"a weight of shape {tuple(weight.shape)}"
            wrong = "only 1x1 convolutions are linear layers over pixels"
            raise KernelError(where="SemiStructuredConv2d", given=given, wrong=wrong, fix="leave this weight dense")
        super().__init__(weight.flatten(1), bias, backend, algorithm)
        self.out_channels, self.in_channels = weight.shape[:2]
        self.kernel_size, self.stride, self.padding, self.dilation, self.groups = (1, 1), stride, (0, 0), (1, 1), 1

    def forward(self, x: Tensor) -> Tensor:
        """``[batch, in, height, width] -> [batch, out, ...]``, channels_last."""
        if x.dim() != 4:
            wrong = f"the layer expects [batch, {self.inputs}, height, width]"
            raise KernelError(
                where="SemiStructuredConv2d", given=f"x of shape {tuple(x.shape)}", wrong=wrong, fix="check x"
            )
        return self._product(semi_structured.pixels(x, self.stride)).permute(0, 3, 1, 2)


def _check_last(x: Tensor, inputs: int, name: str) -> None:
    if not x.dim() or x.shape[-1] != inputs:
        wrong = f"the layer expects {inputs} input channels"
        raise KernelError(where=name, given=f"x of shape {tuple(x.shape)}", wrong=wrong, fix="check x")
