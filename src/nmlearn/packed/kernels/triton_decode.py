"""Decode on GPUs: a linear layer for 1 to 64 tokens that reads its weight packed (Triton).

With few tokens, reading the weight is the bottleneck, so the weight stays packed until it is in registers:

    1 to 4 tokens     each kept weight gathers its own input; CUDA cores
    5 to 64 tokens    a tile becomes dense in registers; tensor cores

Sums are float32 and bit-identical every time: there are no atomics. Nothing waits for the device, so all of it can be
captured in a CUDA graph, after one call outside that compiles the kernel. There are no gradients. Triton is imported
when it is first needed.
"""

from __future__ import annotations

import functools
import importlib.util
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nmlearn.errors import KernelError
from nmlearn.maths.groups import Grouping, misfit
from nmlearn.maths.pattern import Pattern
from nmlearn.packed.kernels.layouts import check_pattern

GROUP_SIZES = (4, 8, 16)  # a place must fit in 4 bits, a tile's sides are powers of two
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
LARGEST_TOKENS = 64
GATHERED_TOKENS = 4
CHUNK = 8  # groups: their places fill one 32-bit word
ROWS = 16  # rows are padded to this many, so that every chunk begins at a whole 32-byte sector
ADDRESSABLE = 2**31 - 1  # offsets in the kernels are 32-bit
H200_PROCESSORS = 132  # assumed where no device reports its number


@dataclass(frozen=True)
class Launch:
    """How a kernel is split into programs; fields change the time, not what is computed.

    Attributes:
        block_o: output rows of a program.
        block_c: chunks (8 groups) of a row that a program processes at a time.
        splits: programs that share the inputs of one block of rows; above 1 a second pass adds their sums.
        warps: warps of a program.
        stages: depth of the pipeline of loads; 1 for the gathering kernel, which has none.
    """

    block_o: int
    block_c: int
    splits: int
    warps: int
    stages: int = 3


def obstacle(x: Tensor, pattern: Pattern, outputs: int, inputs: int) -> str:
    """Why the kernels cannot multiply inputs ``[..., K]`` by a weight ``[O, K]`` of that pattern; empty if they can."""
    tokens = x.numel() // max(1, x.shape[-1]) if x.dim() else 0
    columns = -(-inputs // (CHUNK * pattern.m)) * CHUNK * pattern.n
    reasons = {
        f"group size {pattern.m}, not 4, 8 or 16": pattern.m not in GROUP_SIZES,
        misfit((outputs, inputs), 1, pattern): True,
        f"the input's last dimension is not {inputs}": not x.dim() or x.shape[-1] != inputs,
        f"{tokens} tokens, more than {LARGEST_TOKENS}": tokens > LARGEST_TOKENS,
        f"{x.dtype} is not one of bfloat16, float16, float32": x.dtype not in DTYPES,
        "the weight is too large for 32-bit offsets": _padded(outputs) * columns > ADDRESSABLE,
        _unavailable(x.device): True,
    }
    return next((reason for reason, applies in reasons.items() if reason and applies), "")


def _unavailable(device: torch.device) -> str:
    """Why Triton cannot run on the device; empty if it can."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if _interpreted():
        return ""
    if device.type != "cuda" or torch.version.hip:
        return "not on an NVIDIA GPU"
    major, minor = torch.cuda.get_device_capability(device)
    return "" if major >= 8 else f"compute capability {major}.{minor}, below 8.0"


def pack(weight: Tensor, pattern: Pattern | str) -> tuple[Tensor, Tensor]:
    """Pack a weight into the kernels' own layout.

    Args:
        weight: ``[O, K]``, bfloat16, float16 or float32, on any device, at most N non-zeros in each group of M along K.
        pattern: N:M with M 4, 8 or 16, or its text.

    Returns:
        values ``[N, C, R, 8]`` of the weight's dtype and index int32 ``[N, C, R]``, on its device: R is O padded to a
        multiple of 16, C is K / (8 M) rounded up. ``values[n, c, o, j]`` is the n-th kept weight of group 8 c + j of
        row o, and bits 4 j to 4 j + 3 of ``index[n, c, o]`` are its place in the group. Padding is zero.

    Raises:
        KernelError: the weight is not 2-D or has another dtype or M.
        PatternError: M does not divide K.
        ViolationError: a group has more than N non-zeros.
    """
    pattern = Pattern(pattern)
    _check_packable(weight, pattern)
    check_pattern(weight, pattern, "triton_decode.pack")
    weight_gm = Grouping(pattern, 1).view(weight.detach())
    # Kept weights first, otherwise in the original order. A group that keeps fewer is filled up with its own zeros.
    place_gn = (weight_gm == 0).to(torch.uint8).sort(dim=-1, stable=True).indices[..., : pattern.n]
    values = _planes(weight_gm.gather(-1, place_gn)).contiguous()
    word = (_planes(place_gn) << (4 * torch.arange(CHUNK, device=weight.device))).sum(-1)
    return values, torch.where(word > ADDRESSABLE, word - 2**32, word).to(torch.int32)


def unpack(values: Tensor, index: Tensor, pattern: Pattern, outputs: int, inputs: int) -> Tensor:
    """The dense weight ``[O, K]`` of what :func:`pack` returned, on any device.

    Raises:
        KernelError: values and index are not such a weight.
    """
    packed = is_packed(values, index, pattern, outputs, inputs)
    if not packed or (index.is_cpu and not belongs(index, pattern)):  # another device would have to wait
        raise KernelError(
            where="triton_decode.unpack",
            given=f"values {tuple(values.shape)}, index {index.dtype} {tuple(index.shape)} at {pattern}",
            wrong=f"these are not a weight [{outputs}, {inputs}] packed by triton_decode.pack",
            fix="check which tensors were loaded",
        )
    _, chunks, rows = index.shape
    place = (index.unsqueeze(-1) >> (4 * torch.arange(CHUNK, dtype=torch.int32, device=index.device))) & 15
    dense = values.new_zeros(rows, chunks, CHUNK, pattern.m)
    # Places are distinct except in padding groups, whose values are all zero.
    dense.scatter_(-1, place.permute(2, 1, 3, 0).long(), values.permute(2, 1, 3, 0))
    return dense.flatten(1)[:outputs, :inputs].contiguous()


def belongs(index: Tensor, pattern: Pattern) -> bool:
    """Whether every place in the index lies in its group: another would read beyond the input."""
    place = (index.unsqueeze(-1) >> (4 * torch.arange(CHUNK, dtype=torch.int32, device=index.device))) & 15
    return bool((place < pattern.m).all())


def _planes(x_ogn: Tensor) -> Tensor:
    """``[O, groups, N]`` -> ``[N, C, R, 8]``, padded with zeros."""
    outputs, groups, _ = x_ogn.shape
    padded = F.pad(x_ogn, (0, 0, 0, -groups % CHUNK, 0, _padded(outputs) - outputs))
    planes: Tensor = padded.unflatten(1, (-1, CHUNK)).permute(3, 1, 0, 2)
    return planes


def _padded(outputs: int) -> int:
    return -(-outputs // ROWS) * ROWS


def _check_packable(weight: Tensor, pattern: Pattern) -> None:
    if weight.dim() != 2 or weight.dtype not in DTYPES or pattern.m not in GROUP_SIZES:
        raise KernelError(
            where="triton_decode.pack",
            given=f"{weight.dtype} {tuple(weight.shape)} at {pattern}",
            wrong="it packs 2-D weights of bfloat16, float16 or float32 in groups of 4, 8 or 16",
            fix="leave this weight dense",
        )


def linear(
    x: Tensor,
    values: Tensor,
    index: Tensor,
    bias: Tensor | None,
    n: int,
    m: int,
    out_features: int,
    launch: Launch | None = None,
) -> Tensor:
    """``x @ weight.T + bias`` for a weight packed by :func:`pack` at N:M.

    Args:
        x: ``[..., K]`` with at most 64 rows, of the dtype and on the device of values; made contiguous where it is not.
        values, index: what ``pack`` returned.
        bias: ``[O]`` of any float dtype, or None; added in float32.
        n, m: the pattern.
        out_features: O.
        launch: how the work is split; by default what :func:`launches` lists first.

    Returns:
        A new tensor ``[..., O]`` of x's dtype.

    Raises:
        KernelError: the operands do not match, or :func:`obstacle` refuses them.
    """
    inputs = x.shape[-1] if x.dim() else 0
    _check_operands(x, values, index, bias, Pattern(n, m), out_features)
    out = x.new_empty(*x.shape[:-1], out_features)
    if not out.numel():
        return out
    x_tk = x.detach().reshape(-1, inputs).contiguous()
    chosen = launch or launches(len(x_tk), out_features, inputs, Pattern(n, m), _processors(x.device), x.dtype)[0]
    with torch.cuda.device_of(x):  # Triton launches on the current device, not on the tensors'
        _run(x_tk, values, index, bias, out, Pattern(n, m), chosen)
    return out


def is_packed(values: Tensor, index: Tensor, pattern: Pattern, outputs: int, inputs: int) -> bool:
    """Whether these have the shapes that :func:`pack` gives."""
    cells = (pattern.n, -(-inputs // (CHUNK * pattern.m)), _padded(outputs))
    return (tuple(values.shape), tuple(index.shape), index.dtype) == ((*cells, CHUNK), cells, torch.int32)


def _check_operands(
    x: Tensor, values: Tensor, index: Tensor, bias: Tensor | None, pattern: Pattern, outputs: int
) -> None:
    inputs = x.shape[-1] if x.dim() else 0
    packed = is_packed(values, index, pattern, outputs, inputs)
    others = [values, index] if bias is None else [values, index, bias]
    reasons = {
        obstacle(x, pattern, outputs, inputs): True,
        "values and index are not a weight of this shape and pattern packed by triton_decode.pack": not packed,
        "values and index are not contiguous": not (values.is_contiguous() and index.is_contiguous()),
        "the input's dtype is not the weight's": x.dtype != values.dtype,
        "the bias is not a contiguous [O]": bias is not None
        and (tuple(bias.shape) != (outputs,) or not bias.is_contiguous()),
        "the operands are on several devices": any(other.device != x.device for other in others),
    }
    for reason, applies in reasons.items():
        if reason and applies:
            given = f"input {x.dtype} {tuple(x.shape)}, values {values.dtype} {tuple(values.shape)} at {pattern}"
            raise KernelError(
                where="triton_decode.linear", given=given, wrong=reason, fix="use the dense weight for this call"
            )


@functools.cache
def launches(
    tokens: int, outputs: int, inputs: int, pattern: Pattern, processors: int, dtype: torch.dtype
) -> tuple[Launch, ...]:
    """Launches to choose from, the default first.

    The default is computed, not measured: a program of the gathering kernel has about 10 KB of loads in flight, and
    programs are split until there are 1.5 times as many as processors.

    Args:
        tokens: 1 to 64.
        outputs, inputs: O and K.
        pattern: the weight's.
        processors: streaming multiprocessors of the device.
        dtype: of the values; float32 tiles are smaller, as they need twice the registers and shared memory.
    """
    chunks = -(-inputs // (CHUNK * pattern.m))
    if tokens <= GATHERED_TOKENS:
        # A thread keeps a float32 sum for each of 8 groups, token and chunk: at most 64 of its registers.
        each = max(1, (4 if tokens == 1 else 2) // pattern.n)
        shapes = [(16, 2 * each, 4, 1), (16, each, 4, 1), (32, each, 8, 1), (16, each, 8, 1)]
        cuts = [(o, min(c * w, _power(chunks)), w, s) for o, c, w, s in shapes]
    else:
        tall = 32 if tokens <= 16 else 64
        columns = [(tall, 128, 4, 3), (64, 128, 4, 4), (64, 256, 4, 3), (128, 128, 8, 3)]
        if dtype == torch.float32:
            columns = [(32, 64, 4, 2), (16, 64, 4, 2), (32, 32, 4, 3)]
        cuts = [(o, max(1, k // (CHUNK * pattern.m)), w, s) for o, k, w, s in columns]
    found = [
        Launch(o, c, splits, w, s)
        for o, c, w, s in cuts
        for splits in _splits(-(-outputs // o), -(-chunks // c), processors)
    ]
    return tuple(dict.fromkeys(found))


def _splits(blocks: int, iterations: int, processors: int) -> list[int]:
    """How often to split the inputs of each block of rows: enough to fill the device, or not at all."""
    wanted = min(iterations, -(-3 * processors // (2 * blocks)))
    return [wanted] if wanted == 1 else [wanted, 1]


def _power(count: int) -> int:
    """The smallest power of two that is not below `count`."""
    return 1 << max(0, count - 1).bit_length()


def _run(
    x_tk: Tensor, values: Tensor, index: Tensor, bias: Tensor | None, out: Tensor, pattern: Pattern, launch: Launch
) -> None:
    code = _code()
    tokens, inputs = x_tk.shape
    outputs, (_, chunks, rows) = out.shape[-1], index.shape
    span = -(-chunks // (launch.splits * launch.block_c)) * launch.block_c
    splits = -(-chunks // span)
    sums = out if splits == 1 else x_tk.new_empty(splits, tokens, outputs, dtype=torch.float32)
    own = bias if splits == 1 else None  # the second pass adds it otherwise
    grid = (-(-outputs // launch.block_o), splits)
    settings: dict[str, Any] = {"N": pattern.n, "M": pattern.m, "BLOCK_O": launch.block_o, "BLOCK_C": launch.block_c}
    settings |= {"BIAS": own is not None, "num_warps": launch.warps, "num_stages": launch.stages}
    sizes = (outputs, inputs, rows, chunks, span)
    if tokens <= GATHERED_TOKENS:
        code.gather[grid](x_tk, values, index, own, sums, *sizes, TOKENS=tokens, **settings)
    else:
        settings |= {"TOKENS": max(16, _power(tokens)), "WIDE": _interpreted() and x_tk.dtype == torch.bfloat16}
        code.expand[grid](x_tk, values, index, own, sums, tokens, *sizes, **settings)
    if splits > 1:
        cells = tokens * outputs
        code.add_splits[(-(-cells // 256),)](sums, bias, out, cells, outputs, splits, BLOCK=256, BIAS=bias is not None)


@functools.cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else H200_PROCESSORS


def _code() -> Any:
    from nmlearn.packed.kernels import triton_code

    return triton_code


def _interpreted() -> bool:
    """Whether Triton runs its kernels in its interpreter, on any device."""
    import triton

    return bool(triton.knobs.runtime.interpret)
