"""2:4 on NVIDIA's sparse tensor cores: a linear layer or 1x1 convolution through torch's semi-structured tensors.

Sparse tensor cores support weights with at most 2 non-zeros in every aligned 4. Patterns such as 1:4, 2:8 and 1:16
satisfy that too and run at the 2:4 rate, filled up with zeros; 4:8 does not. There are two backends, cuSPARSELt and
CUTLASS. Which of them is faster than dense, if any, differs between devices and shapes and has to be measured.

torch calls this interface a prototype. There are no gradients. Nothing is imported or queried before it is needed.
"""

from __future__ import annotations

import warnings
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from nmlearn.errors import KernelError
from nmlearn.maths.groups import misfit
from nmlearn.maths.pattern import Pattern
from nmlearn.packed.kernels.layouts import check_pattern

Backend = Literal["cusparselt", "cutlass"]
DTYPES = (torch.bfloat16, torch.float16)
MULTIPLES: dict[Backend, tuple[int, int]] = {"cusparselt": (16, 16), "cutlass": (32, 64)}  # of O and K, in 16-bit types
_HARDWARE = Pattern(2, 4)


def obstacle(x: Tensor, pattern: Pattern, outputs: int, inputs: int, backend: Backend = "cusparselt") -> str:
    """Why the backend cannot multiply inputs ``[..., K]`` by a weight ``[O, K]`` of that pattern; empty if it can.

    An empty answer does not guarantee that the device has a kernel: code that measures must treat an error of the first
    call as unsupported.
    """
    rows, columns = MULTIPLES[backend]
    reasons = {
        f"{pattern} is not a subset of 2:4": not within_hardware(pattern),
        misfit((outputs, inputs), 1, pattern): True,
        f"{outputs} outputs, not a multiple of {rows}": outputs % rows != 0,
        f"{inputs} inputs, not a multiple of {columns}": inputs % columns != 0,
        f"the input's last dimension is not {inputs}": not x.dim() or x.shape[-1] != inputs,
        f"{x.dtype} is not bfloat16 or float16": x.dtype not in DTYPES,
        _unavailable(x.device, backend): True,
    }
    return next((reason for reason, applies in reasons.items() if reason and applies), "")


def within_hardware(pattern: Pattern) -> bool:
    """Whether every weight of this pattern has at most 2 non-zeros in each aligned 4."""
    if pattern.m % 4 == 0:
        return pattern.n <= 2
    return 4 % pattern.m == 0 and pattern.n * (4 // pattern.m) <= 2


def _unavailable(device: torch.device, backend: Backend) -> str:
    """Why the backend cannot run on the device; empty if no reason is known."""
    if device.type != "cuda" or torch.version.hip:
        return "not on an NVIDIA GPU"
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        return f"compute capability {major}.{minor}, below 8.0"
    if backend == "cusparselt" and not torch.backends.cusparselt.is_available():
        return "this build of torch has no cuSPARSELt"
    return ""


def pack(weight: Tensor, backend: Backend = "cusparselt", algorithm: int = 0) -> Tensor:
    """Compress a weight for the backend.

    Args:
        weight: ``[O, K]``, bfloat16 or float16, on an NVIDIA GPU, at most 2 non-zeros in every aligned 4 along K.
        backend: "cusparselt" (O and K multiples of 16) or "cutlass" (of 32 and 64).
        algorithm: cuSPARSELt's number of an algorithm, from ``torch._cslt_sparse_mm_search``; 0 is its default.

    Returns:
        A ``torch.sparse.SparseSemiStructuredTensor`` ``[O, K]``.

    Raises:
        KernelError: the backend does not support the shape, dtype or device.
        ViolationError: some aligned 4 has more than 2 non-zeros.
    """
    weight = weight.detach()
    _check_packable(weight, backend)
    check_pattern(weight, _HARDWARE, "semi_structured.pack")
    chosen = {"alg_id": algorithm} if algorithm else {}  # older versions of torch lack this argument
    with warnings.catch_warnings(), torch.cuda.device_of(weight):
        warnings.filterwarnings("ignore", "The PyTorch API of SparseSemiStructuredTensor", UserWarning)
        packed: Tensor = _kind(backend).from_dense(weight.contiguous(), **chosen)
    return packed


def parts(packed: Tensor) -> tuple[Tensor, Tensor | None]:
    """The plain tensors of what :func:`pack` returned: values (for cuSPARSELt all in one), and the metadata."""
    return packed.packed, packed.meta  # type: ignore[attr-defined]


def joined(values: Tensor, meta: Tensor | None, shape: tuple[int, int], backend: Backend, algorithm: int = 0) -> Tensor:
    """The tensor ``[O, K]`` that :func:`parts` split; nothing is copied."""
    inner = {"packed": values} if meta is None else {"packed": values, "meta": meta}
    context = (torch.Size(shape), False, algorithm, False)  # no fused transposition, no gradient
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The PyTorch API of SparseSemiStructuredTensor", UserWarning)
        whole: Tensor = _kind(backend).__tensor_unflatten__(inner, context, None, None)
    return whole


def _kind(backend: Backend) -> Any:
    if backend == "cutlass":
        return torch.sparse.SparseSemiStructuredTensorCUTLASS
    return torch.sparse.SparseSemiStructuredTensorCUSPARSELT


def _check_packable(weight: Tensor, backend: Backend) -> None:
    wrong = "only 2-D weights are packed" if weight.dim() != 2 else _misfit(weight, backend)
    if wrong:
        given = f"{weight.dtype} {tuple(weight.shape)} on {weight.device} for {backend}"
        raise KernelError(where="semi_structured.pack", given=given, wrong=wrong, fix="leave this weight dense")


def _misfit(weight: Tensor, backend: Backend) -> str:
    return obstacle(weight, _HARDWARE, weight.shape[0], weight.shape[1], backend)


def linear(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    """``x @ weight.T + bias`` on sparse tensor cores.

    Args:
        x: ``[..., K]`` of the weight's dtype and device; torch pads its rows to a multiple of 8.
        packed: ``[O, K]``, what :func:`pack` returned.
        bias: ``[O]``, or None; converted to the weight's dtype.

    Returns:
        A new tensor ``[..., O]``.

    Raises:
        KernelError: the input's dtype, device or last dimension are not the weight's.
    """
    outputs, inputs = packed.shape
    _check_input(x, packed)
    if not x.numel():
        return x.new_empty(*x.shape[:-1], outputs)
    x_tk = x.detach().reshape(-1, inputs).contiguous()
    with torch.cuda.device_of(x):
        out = F.linear(x_tk, packed, None if bias is None else bias.detach().to(packed.dtype))
    return out.reshape(*x.shape[:-1], outputs)


def _check_input(x: Tensor, packed: Tensor) -> None:
    if not x.dim() or x.shape[-1] != packed.shape[1] or x.dtype != packed.dtype or x.device != packed.device:
        raise KernelError(
            where="semi_structured.linear",
            given=f"input {x.dtype} {tuple(x.shape)} on {x.device}",
            wrong=f"the weight is {packed.dtype} {tuple(packed.shape)} on {packed.device}",
            fix="cast, move or reshape the input",
        )


def pixels(x: Tensor, stride: int | tuple[int, int] = 1) -> Tensor:
    """``[B, C, H, W] -> [B, H', W', C]``: what a 1x1 convolution multiplies, a view."""
    down, across = (stride, stride) if isinstance(stride, int) else stride
    return x[:, :, ::down, ::across].permute(0, 2, 3, 1)
