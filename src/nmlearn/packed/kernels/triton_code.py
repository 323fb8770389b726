"""The device code of :mod:`nmlearn.packed.kernels.triton_decode`, which imports it lazily, as it imports Triton.

A packed weight is N planes, plane n holding the n-th kept weight of every group. Eight consecutive groups of one row
are a chunk: 8 adjacent values, and one 32-bit word of 4-bit places. The rows of a chunk follow each other in
memory, so the lanes of a warp, one row each, read 16 bytes of bf16 each from one contiguous piece.

Every offset is a 32-bit number; `obstacle` refuses a weight that would need more. Padding groups read no input, so that
their zeros are never multiplied by an infinite one.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _picked(x_ptr, value_cor, column_cor, inside_cor):
    """Value times input, in float32: [chunk, row, group]."""
    return value_cor * tl.load(x_ptr + column_cor, mask=inside_cor, other=0.0).to(tl.float32)


@triton.jit
def _stored(sum_o, token, out_ptr, bias_ptr, row_o, outputs, TOKENS: tl.constexpr, BIAS: tl.constexpr):
    """Write one token's sums: as partial sums of this split, or with the bias as the result."""
    inside = row_o < outputs
    if BIAS:
        sum_o += tl.load(bias_ptr + row_o, mask=inside, other=0.0).to(tl.float32)
    line = tl.program_id(1) * TOKENS + token
    tl.store(out_ptr + line * outputs + row_o, sum_o.to(out_ptr.dtype.element_ty), mask=inside)


# If the divisibility of rows is unknown, a thread loads the places of its own row, and the loop needs no barrier.
@triton.jit(do_not_specialize=["rows"])
def gather(
    x_ptr, values_ptr, index_ptr, bias_ptr, out_ptr, outputs, inputs, rows, chunks, span,
    N: tl.constexpr, M: tl.constexpr, TOKENS: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_C: tl.constexpr,
    BIAS: tl.constexpr,
):  # fmt: skip
    """One to four tokens: every kept weight fetches its own input.

    The rows of a warp read from the same group, at most 32 bytes of bf16: one access to the first-level cache.
    Threads and warps sum over the chunks of a program; programs along axis 1 process `span` chunks each.
    """
    row_o = tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O)
    lane = tl.arange(0, 8)
    begin = tl.program_id(1) * span
    end = tl.minimum(begin + span, chunks)
    sum_0 = tl.zeros([BLOCK_C, BLOCK_O, 8], tl.float32)
    sum_1, sum_2, sum_3 = sum_0, sum_0, sum_0
    for first in range(begin, end, BLOCK_C):
        chunk_c = first + tl.arange(0, BLOCK_C)
        live = (chunk_c < end)[:, None] & (row_o < rows)[None, :]
        group = chunk_c[:, None, None] * 8 + lane[None, None, :]
        for n in tl.static_range(N):
            cell = (n * chunks + chunk_c)[:, None] * rows + row_o[None, :]
            word = tl.load(index_ptr + cell, mask=live, other=0)[:, :, None]
            value = tl.load(values_ptr + cell[:, :, None] * 8 + lane, mask=live[:, :, None], other=0.0).to(tl.float32)
            column = group * M + ((word >> (lane * 4)) & 15)
            inside = live[:, :, None] & (group * M < inputs)
            sum_0 += _picked(x_ptr, value, column, inside)
            if TOKENS > 1:
                sum_1 += _picked(x_ptr + inputs, value, column, inside)
            if TOKENS > 2:
                sum_2 += _picked(x_ptr + 2 * inputs, value, column, inside)
            if TOKENS > 3:
                sum_3 += _picked(x_ptr + 3 * inputs, value, column, inside)
    _stored(tl.sum(tl.sum(sum_0, 2), 0), 0, out_ptr, bias_ptr, row_o, outputs, TOKENS, BIAS)
    if TOKENS > 1:
        _stored(tl.sum(tl.sum(sum_1, 2), 0), 1, out_ptr, bias_ptr, row_o, outputs, TOKENS, BIAS)
    if TOKENS > 2:
        _stored(tl.sum(tl.sum(sum_2, 2), 0), 2, out_ptr, bias_ptr, row_o, outputs, TOKENS, BIAS)
    if TOKENS > 3:
        _stored(tl.sum(tl.sum(sum_3, 2), 0), 3, out_ptr, bias_ptr, row_o, outputs, TOKENS, BIAS)


@triton.jit
def _expanded(
    values_ptr, index_ptr, cell_oc, live_oc, plane, N: tl.constexpr, M: tl.constexpr, BLOCK_O: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    """The dense tile [row, column] of some rows and chunks, built in registers."""
    lane = tl.arange(0, 8)
    place = tl.arange(0, M)[None, None, None, :]
    dense = tl.zeros([BLOCK_O, BLOCK_C, 8, M], values_ptr.dtype.element_ty)
    for n in tl.static_range(N):
        cell = n * plane + cell_oc
        word = tl.load(index_ptr + cell, mask=live_oc, other=0)[:, :, None]
        value = tl.load(values_ptr + cell[:, :, None] * 8 + lane, mask=live_oc[:, :, None], other=0.0)
        kept = ((word >> (lane * 4)) & 15)[:, :, :, None]
        dense = tl.where(kept == place, value[:, :, :, None], dense)
    return tl.reshape(dense, [BLOCK_O, BLOCK_C * 8 * M])


@triton.jit
def expand(
    x_ptr, values_ptr, index_ptr, bias_ptr, out_ptr, tokens, outputs, inputs, rows, chunks, span,
    N: tl.constexpr, M: tl.constexpr, TOKENS: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_C: tl.constexpr,
    BIAS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Up to 64 tokens: read packed, multiply dense on the tensor cores. TOKENS is the padded number of tokens.

    WIDE multiplies narrower types in float32: Triton's interpreter has no bfloat16.
    """
    row_o = tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O)
    token_t = tl.arange(0, TOKENS)
    begin = tl.program_id(1) * span
    end = tl.minimum(begin + span, chunks)
    sum_ot = tl.zeros([BLOCK_O, TOKENS], tl.float32)
    for first in range(begin, end, BLOCK_C):
        chunk_c = first + tl.arange(0, BLOCK_C)
        live = (row_o < rows)[:, None] & (chunk_c < end)[None, :]
        cell = chunk_c[None, :] * rows + row_o[:, None]
        w_ok = _expanded(values_ptr, index_ptr, cell, live, chunks * rows, N, M, BLOCK_O, BLOCK_C)
        column = first * 8 * M + tl.arange(0, BLOCK_C * 8 * M)
        inside = (token_t < tokens)[:, None] & (column < tl.minimum(inputs, end * 8 * M))[None, :]
        x_tk = tl.load(x_ptr + token_t[:, None] * inputs + column[None, :], mask=inside, other=0.0)
        if WIDE:
            w_ok, x_tk = w_ok.to(tl.float32), x_tk.to(tl.float32)
        sum_ot = tl.dot(w_ok, tl.trans(x_tk), sum_ot, input_precision="ieee")
    if BIAS:
        sum_ot += tl.load(bias_ptr + row_o, mask=row_o < outputs, other=0.0).to(tl.float32)[:, None]
    line = tl.program_id(1) * tokens + token_t
    inside = (row_o < outputs)[:, None] & (token_t < tokens)[None, :]
    tl.store(out_ptr + line[None, :] * outputs + row_o[:, None], sum_ot.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def add_splits(
    partial_ptr, bias_ptr, out_ptr, cells, outputs, splits, BLOCK: tl.constexpr, BIAS: tl.constexpr
):  # fmt: skip
    """Add the partial sums [split, token, output] in the order of the splits: bit-identical every time."""
    cell = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = cell < cells
    total = tl.zeros([BLOCK], tl.float32)
    for split in range(splits):
        total += tl.load(partial_ptr + split * cells + cell, mask=inside, other=0.0)
    if BIAS:
        total += tl.load(bias_ptr + cell % outputs, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + cell, total.to(out_ptr.dtype.element_ty), mask=inside)
