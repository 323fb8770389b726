"""Weights of random bits with zeros in a pattern, and files of them, for the tests of packed files."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

import nmlearn as nm
from nmlearn.maths.groups import Grouping
from nmlearn.maths.masks import SAME_SIZE

DTYPES = [
    torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2,
]  # fmt: skip
patterns = st.integers(1, 64).flatmap(lambda m: st.builds(nm.Pattern, st.integers(1, m), st.just(m)))
small_patterns = st.sampled_from(["2:4", "1:4", "1:2", "3:4", "4:8", "1:16", "2:16"]).map(nm.Pattern)


def bits(x: Tensor) -> Tensor:
    """A floating-point tensor as integers."""
    return x.view(SAME_SIZE[x.element_size()])


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors agree in type, shape and every bit."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return torch.equal(bits(a), bits(b)) if a.is_floating_point() else torch.equal(a, b)


def unsigned_zeros(x: Tensor) -> Tensor:
    """The same numbers, every zero of them +0.0: what a packed weight comes back as."""
    negative_zero = torch.iinfo(bits(x).dtype).min
    return bits(x).masked_fill(bits(x) == negative_zero, 0).view(x.dtype)


def random_bits(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    """Any bits at all: NaN of every payload, infinities, subnormals; one in eight is a negative zero."""
    g = torch.Generator().manual_seed(seed)
    octets = torch.randint(256, (*shape, dtype.itemsize), generator=g, dtype=torch.uint8)
    x = octets.view(SAME_SIZE[dtype.itemsize]).reshape(shape)
    negative_zero = torch.iinfo(x.dtype).min
    return x.masked_fill_(torch.rand(shape, generator=g) < 1 / 8, negative_zero).view(dtype)


def sparse_bits(
    shape: tuple[int, ...], grouping: Grouping, dtype: torch.dtype = torch.float32, seed: int = 0, fewer: float = 0.0
) -> Tensor:
    """Random bits without -0.0 that fulfil a pattern; a share ``fewer`` of what it allows is zero as well."""
    x = unsigned_zeros(random_bits(shape, dtype, seed))
    g = torch.Generator().manual_seed(seed + 1)
    view = grouping.view(bits(x))
    view.masked_fill_(torch.rand(view.shape, generator=g).argsort(-1) >= grouping.pattern.n, 0)
    view.masked_fill_(torch.rand(view.shape, generator=g) < fewer, 0)
    return x


@st.composite
def weights(draw: st.DrawFn, patterns: st.SearchStrategy[nm.Pattern] = patterns) -> tuple[Tensor, Grouping]:
    """A weight of any layer and type, and a pattern that it fulfils; its zeros may have signs."""
    pattern = draw(patterns)
    inputs = pattern.m * draw(st.integers(0, 3))
    outputs, k = draw(st.integers(0, 5)), draw(st.integers(1, 3))
    shape, axis = draw(
        st.sampled_from([((outputs, inputs), 1), ((outputs, inputs, k), 1), ((outputs, inputs, k, k), 1),
                         ((inputs, outputs, k, k), 0), ((inputs, outputs), 0), ((k, outputs, inputs), 2)])
    )  # fmt: skip
    grouping = Grouping(pattern, axis)
    fewer = draw(st.sampled_from([0.0, 0.3, 1.0]))
    x = sparse_bits(shape, grouping, draw(st.sampled_from(DTYPES)), draw(st.integers(0, 1 << 30)), fewer)
    if draw(st.booleans()):  # as weight * mask leaves them
        bits(x).masked_fill_((bits(x) == 0) & (torch.rand(x.shape) < 0.5), torch.iinfo(bits(x).dtype).min)
    if len(shape) == 4 and draw(st.booleans()):
        x = x.to(memory_format=torch.channels_last) if x.element_size() > 1 else x.transpose(2, 3)
    return x, grouping
