"""The layouts that the CPU kernels read, and how dense weights are converted to them and back.

    rows     "row lanes": sixteen output rows in the lanes. values [groups, blocks, steps, 16], index flat int32,
             [groups][blocks][ceil(steps / 8)][16] with 4 bits a step, plus 16 words that kernels may read beyond the
             last code; a step is one non-zero of each of 16 rows. Where M divides 4, 2 bits a step are enough:
             [groups][blocks][ceil(steps / 16)][16].
    tokens   "token lanes": sixteen tokens in the lanes. values and index (uint8) flat, [groups][tile][row][slot].
    bytes    "byte lanes", of linear layers and 1x1 convolutions: values int8 and index uint8, flat, in the order of
             csrc/byte_lanes.h; 4 bits a code. A call rounds its activations too: kernels/reference.py, `rounded`.

All run over K = taps * channels of one convolution group, channels last; a linear layer has one tap and one group.
A group with fewer than N non-zeros is filled up with its own zero weights, so a kernel computes no product that a dense
layer does not.
Shape suffixes: o rows, k inputs, p places kept (k / m * n), s steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from nmlearn.errors import KernelError, PatternError, ViolationError
from nmlearn.maths.groups import Grouping
from nmlearn.maths.pattern import Pattern

Layout = Literal["rows", "tokens", "bytes"]
LANES = 16
MOST_BYTES = 2**17  # times 127 * 127 is less than 2**31
LARGEST_TILE = 256  # a place in a tile is one byte
WEIGHTS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@dataclass(frozen=True)
class Form:
    """The form of a packed weight's dense one: ``[rows, channels, *kernel]`` per convolution group."""

    pattern: Pattern
    groups: int
    rows: int
    channels: int
    kernel: tuple[int, ...]

    @property
    def taps(self) -> int:
        count = 1
        for length in self.kernel:
            count *= length
        return count

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the dense weight, ``[groups * rows, channels, *kernel]``."""
        return (self.groups * self.rows, self.channels, *self.kernel)


def form(weight: Tensor, pattern: Pattern, groups: int = 1, name: str = "weight") -> Form:
    """The form of a dense weight ``[groups * rows, channels, *kernel]``.

    Raises:
        KernelError: its shape, type or device cannot be packed; by name.
    """
    wrong = ""
    if weight.dim() < 2 or groups < 1 or weight.shape[0] % groups:
        wrong = f"a weight is [out, in, *kernel] with its outputs in {groups} equal groups"
    elif weight.is_meta or weight.dtype not in WEIGHTS:
        wrong = f"it must have data, of type {', '.join(str(d).removeprefix('torch.') for d in WEIGHTS)}"
    if wrong:
        given = f"{weight.dtype} {tuple(weight.shape)} on {weight.device}"
        raise KernelError(where=name, given=given, wrong=wrong, fix="leave this weight dense")
    return Form(pattern, groups, weight.shape[0] // groups, weight.shape[1], tuple(weight.shape[2:]))


def refusal(layout: Layout, form: Form) -> str:
    """Why a weight of this form cannot have the layout; empty if it can."""
    m = form.pattern.m
    if not form.taps * form.channels:
        return "it has no inputs"
    if form.channels % m:
        return f"{form.channels} input channels are not a multiple of {m}"
    if layout != "tokens" and LANES % m:
        return f"{'row' if layout == 'rows' else 'byte'} lanes need a group size that divides {LANES}, not {m}"
    if layout == "bytes" and (form.groups, form.taps) != (1, 1):
        return "byte lanes are for linear layers and 1x1 convolutions in one group"
    if layout == "bytes" and form.channels > MOST_BYTES:
        return f"exact int32 sums of byte lanes have at most {MOST_BYTES} terms, not {form.channels}"
    return ""


def tile_of(form: Form) -> int:
    """Inputs in a tile of the token lanes: enough non-zeros per row that its sums are not moved too often."""
    n, m = form.pattern.n, form.pattern.m
    inputs = form.taps * form.channels
    wanted = {2: 64, 4: 80, 8: 96}.get(m // n, 160) if m >= 2 * n else 48
    tiles = max(1, round(inputs / wanted))
    return min(LARGEST_TILE // m * m, inputs, -(-inputs // tiles // m) * m)


def check_pattern(weight: Tensor, pattern: Pattern, name: str) -> None:
    """Refuse a weight ``[out, in, ...]`` that breaks a pattern.

    Raises:
        ViolationError: a group has more than N non-zeros; by name.
    """
    why = Grouping(pattern, 1).violation(weight.detach() != 0)
    if why:
        fix = "finalize the sparsifier before packing, or give the pattern that the weight has"
        raise ViolationError(where=name, given=tuple(weight.shape), wrong=why, fix=fix)


def find(weight: Tensor, form: Form, name: str = "weight") -> tuple[Tensor, Tensor]:
    """The kept values and their inputs, ``[groups, o, p]``: N of every group in order, zeros where it has fewer.

    Among the zeros negative ones come first, as a file may have kept them.

    Raises:
        ViolationError: a group has more than N non-zeros.
    """
    check_pattern(weight, form.pattern, name)
    n, m = form.pattern.n, form.pattern.m
    w_gok = weight.detach().reshape(form.groups, form.rows, form.channels, form.taps).movedim(2, -1).flatten(2)
    w_gm = w_gok.unflatten(-1, (-1, m))
    kept = w_gm != 0
    rank = kept.to(torch.uint8) * 2 + torch.signbit(w_gm)
    order = rank.where(~kept, 2).argsort(dim=-1, descending=True, stable=True)[..., :n].sort(-1).values
    values = w_gm.gather(-1, order)
    starts = torch.arange(w_gm.shape[-2], device=weight.device).mul(m)[:, None]
    return values.flatten(-2), (order + starts).flatten(-2)


def pack(weight: Tensor, form: Form, layout: Layout, name: str = "weight") -> tuple[Tensor, Tensor]:
    """Values and index of a dense weight ``[groups * rows, channels, *kernel]`` in a layout.

    Raises:
        ViolationError: the weight breaks the pattern; PatternError: it cannot have the layout. Both by name.
    """
    why = refusal(layout, form)
    if why:
        raise PatternError(where=name, given=f"{form.pattern}, {form.shape}", wrong=why, fix="leave this weight dense")
    packer = {"rows": pack_rows, "tokens": pack_tokens, "bytes": pack_bytes}[layout]
    return packer(*find(weight, form, name), form)


def unpack(values: Tensor, index: Tensor, form: Form, layout: Layout) -> Tensor:
    """The dense weight ``[groups * rows, channels, *kernel]`` that was packed.

    Raises:
        KernelError: the index names inputs that the weight does not have (on a CPU; another device would have to wait).
    """
    v_gop, k_gop = _UNPACK[layout](values, index, form)
    if k_gop.is_cpu and k_gop.numel() and int(k_gop.max()) >= form.taps * form.channels:
        raise KernelError(
            where="index",
            given=f"input {int(k_gop.max())}",
            wrong=f"a {form.pattern} weight of shape {form.shape} has {form.taps * form.channels} inputs",
            fix="load the index that was packed with the values",
        )
    size = (form.groups, form.rows, form.taps * form.channels)
    dense = torch.zeros(size, dtype=values.dtype, device=values.device)
    dense.scatter_(-1, k_gop, v_gop)
    weight: Tensor = dense.unflatten(-1, (form.taps, form.channels)).movedim(-1, 2).reshape(form.shape)
    return weight


def belongs(values: Tensor, index: Tensor, form: Form, layout: Layout) -> bool:
    """Whether the index fits a weight of this form: every place lies in its group, and none occurs twice."""
    _, k_gop = _UNPACK[layout](values, index, form)
    k_gpn = k_gop.unflatten(-1, (-1, form.pattern.n))
    starts = torch.arange(k_gpn.shape[-2], device=k_gop.device)[:, None]
    return bool((k_gpn // form.pattern.m == starts).all() and (k_gpn.diff(dim=-1) > 0).all())


def pack_rows(v_gop: Tensor, k_gop: Tensor, form: Form) -> tuple[Tensor, Tensor]:
    # A tap's padding points beyond its inputs, where kernels put zeros: it never meets an infinite input.
    v, k = _windows(v_gop, form, 0), _windows(k_gop % form.channels % LANES, form, LANES - 1)
    blocks, steps = -(-form.rows // LANES), v.shape[-1]
    bits, per_word = _code(form)
    words = -(-steps // per_word)
    values = v.new_zeros(form.groups, blocks * LANES, steps)
    values[:, : form.rows] = v
    places = k.new_zeros(form.groups, blocks * LANES, words * per_word)
    places[:, : form.rows, :steps] = k & (1 << bits) - 1
    shifted = places.unflatten(-1, (words, per_word)) << torch.arange(0, 32, bits, device=k.device)
    index = shifted.sum(-1).to(torch.int32)
    values, index = (x.unflatten(1, (blocks, LANES)).mT for x in (values, index))
    return values.contiguous(), F.pad(index.flatten(), (0, LANES))


def unpack_rows(values: Tensor, index: Tensor, form: Form) -> tuple[Tensor, Tensor]:
    n, m = form.pattern.n, form.pattern.m
    per_tap = _steps_of_tap(form)
    bits, per_word = _code(form)
    words = index[:-LANES].view(*values.shape[:2], -(-values.shape[2] // per_word), LANES)
    places = (words.mT.unsqueeze(-1) >> torch.arange(0, 32, bits, device=index.device)) & (1 << bits) - 1
    places = places.flatten(-2)[..., : values.shape[-2]].flatten(1, 2)[:, : form.rows]
    v = values.mT.flatten(1, 2)[:, : form.rows]
    kept = form.channels // m * n
    steps = torch.arange(per_tap, device=index.device)
    base = 1 << bits  # the inputs that a code chooses from start at a multiple of this
    window = steps // (base * n // m) * base
    k = places.unflatten(-1, (form.taps, per_tap)) + window
    k = k + (torch.arange(form.taps, device=index.device) * form.channels)[:, None]
    return v.unflatten(-1, (form.taps, per_tap))[..., :kept].flatten(-2), k[..., :kept].flatten(-2).long()


def _windows(x_gop: Tensor, form: Form, fill: int) -> Tensor:
    """Steps of a row, each tap padded to whole windows of 16 inputs."""
    x = x_gop.unflatten(-1, (form.taps, -1))
    return F.pad(x, (0, _steps_of_tap(form) - x.shape[-1]), value=fill).flatten(-2)


def _code(form: Form) -> tuple[int, int]:
    """Bits of a step's code, and codes per word."""
    bits = 4 if 4 % form.pattern.m else 2
    return bits, 32 // bits


def _steps_of_tap(form: Form) -> int:
    """Steps of the row lanes for one tap, whose channels are padded to whole windows of 16."""
    return -(-form.channels // LANES) * (LANES * form.pattern.n // form.pattern.m)


def pack_tokens(v_gop: Tensor, k_gop: Tensor, form: Form) -> tuple[Tensor, Tensor]:
    tile = tile_of(form)
    slots = tile // form.pattern.m * form.pattern.n
    return _tiled(v_gop, slots), _tiled((k_gop % tile).to(torch.uint8), slots)


def _tiled(x_gop: Tensor, slots: int) -> Tensor:
    return torch.cat([part.flatten(1) for part in x_gop.split(slots, dim=-1)], dim=-1).flatten()


def unpack_tokens(values: Tensor, index: Tensor, form: Form) -> tuple[Tensor, Tensor]:
    tile, pattern = tile_of(form), form.pattern
    slots, kept = tile // pattern.m * pattern.n, form.taps * form.channels // pattern.m * pattern.n
    counts = [min(slots, kept - start) for start in range(0, kept, slots)]

    def rows(x: Tensor) -> list[Tensor]:
        parts = x.view(form.groups, form.rows * kept).split([count * form.rows for count in counts], dim=-1)
        return [part.unflatten(-1, (form.rows, count)) for part, count in zip(parts, counts, strict=True)]

    k = [part.long() + i * tile for i, part in enumerate(rows(index))]
    return torch.cat(rows(values), dim=-1), torch.cat(k, dim=-1)


def pack_bytes(v_gop: Tensor, k_gop: Tensor, form: Form) -> tuple[Tensor, Tensor]:
    each, vectors = _byte_code(form)
    registers = 4 // each  # of eight rows, in a block
    v, k = _byte_slots(v_gop, form), _byte_slots(k_gop % LANES, form).to(torch.uint8)
    values = v.view(-1, registers, 8, vectors // registers, registers, each).permute(0, 3, 1, 2, 4, 5)
    codes = k.view(-1, registers, 2, 4, vectors // 2, 2, each).permute(5, 0, 4, 2, 1, 3, 6)
    return values.flatten(), (codes[0] | codes[1] << 4).flatten()


def unpack_bytes(values: Tensor, index: Tensor, form: Form) -> tuple[Tensor, Tensor]:
    each, vectors = _byte_code(form)
    registers, tables, density = 4 // each, -(-form.channels // LANES), LANES * form.pattern.n // form.pattern.m
    v = values.view(-1, vectors // registers, registers, 8, registers, each).permute(0, 2, 3, 1, 4, 5)
    codes = torch.stack([index & 15, index >> 4]).view(2, -1, vectors // 2, 2, registers, 4, each)
    k = codes.permute(1, 4, 3, 5, 2, 0, 6)

    def rows(x: Tensor) -> Tensor:
        slots: Tensor = x.reshape(-1, vectors * each)[: form.rows, : tables * -(-density // each) * each]
        tabled: Tensor = slots.unflatten(-1, (tables, -1))
        return tabled[..., :density]

    kept = form.channels // form.pattern.m * form.pattern.n
    inputs = rows(k).long() + torch.arange(tables, device=index.device)[:, None] * LANES
    return rows(v).flatten(1)[None, :, :kept], inputs.flatten(1)[None, :, :kept]


_UNPACK = {"rows": unpack_rows, "tokens": unpack_tokens, "bytes": unpack_bytes}


def _byte_code(form: Form) -> tuple[int, int]:
    """Non-zeros of a row in a code vector, and code vectors."""
    density, tables = LANES * form.pattern.n // form.pattern.m, -(-form.channels // LANES)
    if density == 1:
        return 1, -(-tables // 4) * 4
    return 2 if density == 2 else 4, -(-tables * -(-density // 4) // 2) * 2


def _byte_slots(x_gop: Tensor, form: Form) -> Tensor:
    """The slots of each row, those of each table padded to whole code vectors; rows padded to whole sets of 32."""
    each, vectors = _byte_code(form)
    density = LANES * form.pattern.n // form.pattern.m
    slots: Tensor = _windows(x_gop, form, 0)[0].unflatten(-1, (-1, density))
    slots = F.pad(slots, (0, -density % each)).flatten(1)
    return F.pad(slots, (0, vectors * each - slots.shape[1], 0, -form.rows % 32))


def sizes(form: Form, layout: Layout) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shapes of values and index."""
    if layout == "tokens":
        size = (form.groups * form.rows * form.taps * form.channels // form.pattern.m * form.pattern.n,)
        return size, size
    if layout == "bytes":
        each, vectors = _byte_code(form)
        count = -(-form.rows // 32) * 32 * each * vectors
        return (count,), (count // 2,)
    steps = form.taps * _steps_of_tap(form)
    blocks = -(-form.rows // LANES)
    return (form.groups, blocks, steps, LANES), (form.groups * blocks * -(-steps // _code(form)[1]) * LANES + LANES,)
