"""Packed weights: every bit comes back, in no more room than the code needs, and a bad index is an error."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import nmlearn as nm
from nmlearn.errors import FormatError, PatternError, ViolationError
from nmlearn.files.formats import CODES, bitstream, pack, unpack
from nmlearn.files.formats.encoding import smallest
from nmlearn.maths.groups import Grouping
from nmlearn.maths.masks import nonzero_bits
from nmlearn.maths.zeros import SIZES, tightest
from packed_weights import DTYPES, bits, patterns, random_bits, same_bits, sparse_bits, unsigned_zeros, weights

two_of_four = Grouping(nm.Pattern("2:4"), 1)


@given(weights(), st.sampled_from(sorted(CODES)))
def test_unpack_restores_every_bit_but_signs_of_zeros(drawn, code):
    weight, grouping = drawn
    packed = pack(weight, grouping, code)
    assert packed.encoding.shape == tuple(weight.shape)
    assert packed.values.shape == packed.encoding.values_shape and packed.values.dtype == weight.dtype
    assert packed.index.shape == packed.encoding.index_shape and packed.index.dtype == torch.uint8
    assert packed.values.nbytes + packed.index.nbytes == packed.encoding.nbytes
    found = unpack(packed)
    assert same_bits(found, unsigned_zeros(weight)) and found.is_contiguous()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_zeros_and_nan(dtype):
    weight = random_bits((64, 64), dtype, seed=3)
    bits(weight)[:, 4:] = torch.iinfo(bits(weight).dtype).min  # -0.0
    bits(weight)[0, 0] = -1  # a NaN in every type
    zeros = weight == 0
    assert not same_bits(weight, unsigned_zeros(weight)) and torch.equal(nonzero_bits(weight), ~zeros)
    assert same_bits(unpack(pack(weight, Grouping(nm.Pattern("4:64"), 1))), unsigned_zeros(weight))
    nothing = torch.zeros(4, 16, dtype=dtype)
    packed = pack(nothing, two_of_four)
    assert packed.values.shape == (4, 8) and not nonzero_bits(packed.values).any()
    assert same_bits(unpack(packed), nothing)


@given(patterns)
def test_the_smallest_code_is_chosen(pattern):
    sizes = {name: code.bits(pattern) for name, code in CODES.items()}
    assert sizes[smallest(pattern)] == min(sizes.values())
    # The information bound: C(M, N) keep-sets cannot be told apart with fewer whole bits.
    assert sizes[smallest(pattern)] == math.ceil(math.log2(pattern.combinations)) or pattern.combinations > 2**50


@pytest.mark.parametrize(("text", "share"), [("2:4", 0.547), ("1:16", 0.0782), ("4:8", 0.555), ("8:16", 0.555)])
def test_sizes(text, share):
    grouping = Grouping(nm.Pattern(text), 1)
    weight = sparse_bits((512, 1024), grouping, torch.float16)
    packed = pack(weight, grouping)
    size = packed.values.nbytes + packed.index.nbytes
    assert size / weight.nbytes <= share
    groups = weight.numel() // grouping.pattern.m
    bound = groups * (grouping.pattern.n * 16 + math.log2(grouping.pattern.combinations)) / 8
    assert size <= 1.013 * bound  # against fractional bits
    assert size <= 1.01 * groups * (grouping.pattern.n * 16 + CODES[packed.encoding.code].bits(grouping.pattern)) / 8


def test_parts_of_an_index_meet_without_a_seam():
    grouping = Grouping(nm.Pattern("3:6"), 1)  # 5 bits a group
    weight = sparse_bits((1001, 1200), grouping, torch.float8_e5m2)
    for code in CODES:
        assert same_bits(unpack(pack(weight, grouping, code)), weight)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fnuz, torch.float8_e5m2fnuz], ids=str)
def test_what_would_be_a_negative_zero_is_nan_in_types_that_have_one_zero(dtype):
    weight = torch.tensor([[-128, 0, 0, 1]], dtype=torch.int8).view(dtype)
    assert nonzero_bits(weight).tolist() == [[True, False, False, True]]
    assert same_bits(unpack(pack(weight, two_of_four)), weight)


def test_a_subnormal_number_is_no_zero_where_the_processor_takes_it_for_one():
    weight = torch.tensor([[1e-40, 0.0, -1e-40, 0.0]])
    try:
        assert torch.set_flush_denormal(True) and not bool((weight != 0).any())
        assert same_bits(unpack(pack(weight, two_of_four)), weight)
    finally:
        torch.set_flush_denormal(False)


def test_what_does_not_fit_is_refused():
    weight = torch.zeros(2, 8)
    weight[1, 4:7] = torch.tensor([1.0, -3.0, 2.0])
    with pytest.raises(ViolationError, match=r"fc.*1 of 4 groups break 2:4; the first is \[1, 4:8\] with 3 non-zeros"):
        pack(weight, two_of_four, name="fc")
    with pytest.raises(PatternError, match="not a multiple"):
        pack(torch.zeros(2, 6), two_of_four)


@pytest.mark.parametrize(
    ("text", "code", "numbers", "width", "match"),
    [
        ("2:4", "offsets", [1, 0, 0, 1], 2, r"offsets \[1, 0\]: the offsets of a group must ascend"),
        ("2:4", "offsets", [0, 1, 3, 3], 2, r"offsets \[3, 3\]"),
        ("2:6", "offsets", [0, 6, 0, 1], 3, "offset 6.*places 0 to 5"),
        ("2:4", "bitmask", [0b0011, 0b0111], 4, "bitmask of 3 kept values: a group of 2:4 keeps 2"),
        ("2:4", "bitmask", [0b0011, 0b1000], 4, "bitmask of 1 kept values"),
        ("2:4", "combination", [5, 6], 3, "combination 6: 2:4 has only 6"),
        ("2:4", "combination", [5, 5, 1], 3, "bits after the last group must be zero"),
    ],
)
def test_a_bad_index_is_an_error_that_names_the_weight(text, code, numbers, width, match):
    grouping = Grouping(nm.Pattern(text), 1)
    packed = pack(torch.zeros(2, grouping.pattern.m), grouping, code)
    packed.index[:] = bitstream.write(torch.tensor(numbers), width)[: len(packed.index)]
    with pytest.raises(FormatError, match="blocks.0.fc: .*" + match):
        unpack(packed, "blocks.0.fc")


def test_tensors_of_another_size_or_type_are_errors():
    packed = pack(torch.zeros(4, 8), two_of_four)
    for values, index in (
        (packed.values[:3], packed.index),
        (packed.values.double(), packed.index),
        (packed.values, packed.index[:-1]),
        (packed.values, packed.index.to(torch.int8)),
    ):
        with pytest.raises(FormatError, match="fc"):
            unpack(replace(packed, values=values, index=index), "fc")


@given(st.integers(0, 63), st.lists(st.integers(0, 2**63 - 1), max_size=20))
def test_bitstream(width, numbers):
    numbers = [number % (1 << width) for number in numbers]
    stream = bitstream.write(torch.tensor(numbers, dtype=torch.int64), width)
    assert len(stream) == math.ceil(len(numbers) * width / 8)
    whole = int.from_bytes(stream.numpy().tobytes(), "little")
    assert whole == sum(number << i * width for i, number in enumerate(numbers))
    assert bitstream.read(stream, width, len(numbers)).tolist() == numbers


@given(st.integers(1, 5), st.sampled_from([1, 2, 4, 6, 12, 16, 64, 96]), st.floats(0, 1), st.integers(0, 99))
def test_the_tightest_pattern_is_the_sparsest_that_holds(rows, inputs, density, seed):
    kept = torch.rand(rows, inputs, generator=torch.Generator().manual_seed(seed)) < density
    holding = [
        nm.Pattern(n, m)
        for m in SIZES
        if inputs % m == 0
        for n in range(1, m)
        if int(kept.view(rows, -1, m).sum(-1).max()) <= n
    ]
    assert tightest(kept, 1) == min(holding, key=lambda pattern: (pattern.density, pattern.m), default=None)
    assert tightest(kept[:0], 1) is None
