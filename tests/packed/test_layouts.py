"""Packing: nothing is lost, nothing is invented, and what cannot be packed is refused by name."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import nmlearn as nm
import operands
from nmlearn.errors import KernelError, PatternError, ViolationError
from nmlearn.packed.kernels import layouts
from nmlearn.packed.kernels.layouts import Form
from nmlearn.packed.modules import PackedLinear

CASES = [(layout, pattern) for layout, patterns in operands.LAYOUTS.items() for pattern in patterns]
KERNELS = [(), (1, 1), (3, 3), (1, 3), (2, 2)]
INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def bits(x: Tensor) -> Tensor:
    return x.view(INTEGERS[x.element_size()])


@st.composite
def weights(draw: st.DrawFn) -> tuple[Tensor, Form, str]:
    """Sparse weights with NaN, infinities, subnormals and, where there is room for them, negative zeros."""
    layout, pattern = draw(st.sampled_from(CASES))
    n, m = nm.Pattern(pattern).n, nm.Pattern(pattern).m
    groups, kernel = draw(st.integers(1, 3)), draw(st.sampled_from(KERNELS))
    shape = (groups * draw(st.integers(0, 20)), m * draw(st.integers(1, 5)), *kernel)
    dtype = draw(st.sampled_from(layouts.WEIGHTS))
    torch.manual_seed(draw(st.integers(0, 1 << 30)))
    weight = operands.sparse(shape, f"{n}:{m}", draw(st.sampled_from([0.0, 0.3, 1.0])), dtype)
    odd = torch.tensor([torch.nan, -torch.nan, torch.inf, -torch.inf, torch.finfo(dtype).tiny / 4, 1.0], dtype=dtype)
    strange = odd[torch.randint(len(odd), shape)]
    weight = torch.where((weight != 0) & (torch.rand(shape) < 0.3), strange, weight)
    room = (torch.rand(shape).unflatten(1, (-1, m)).argsort(2).argsort(2) < n).flatten(1, 2)
    others = (weight != 0).unflatten(1, (-1, m)).sum(2, keepdim=True).expand(-1, -1, m, *kernel).flatten(1, 2)
    weight = torch.where(room & (others == 0), -torch.zeros((), dtype=dtype), weight)
    return weight, layouts.form(weight, nm.Pattern(pattern), groups), layout


@given(weights())
def test_unpacks_to_the_same_bits(case: tuple[Tensor, Form, str]) -> None:
    weight, form, layout = case
    values, index = layouts.pack(weight, form, layout)
    assert (tuple(values.shape), tuple(index.shape)) == layouts.sizes(form, layout)
    found = layouts.unpack(values, index, form, layout)
    assert torch.equal(
        found.isnan(), weight.isnan()
    )  # of a NaN the payload may change: torch copies bfloat16 as floats
    assert torch.equal(bits(found)[~weight.isnan()], bits(weight)[~weight.isnan()])
    assert layouts.belongs(values, index, form, layout)


@given(weights())
def test_finds_n_places_of_every_group(case: tuple[Tensor, Form, str]) -> None:
    weight, form, _ = case
    _, places = layouts.find(weight, form)
    groups = places.unflatten(-1, (-1, form.pattern.n)) // form.pattern.m
    assert torch.equal(groups, torch.arange(groups.shape[-2])[:, None].expand_as(groups))
    assert (places.diff(dim=-1) > 0).all()


@pytest.mark.parametrize(("layout", "pattern"), CASES)
def test_a_tile_fits_its_byte(layout: str, pattern: str) -> None:
    m = nm.Pattern(pattern).m
    for channels in (m, 16 * m, 100 * m):
        tile = layouts.tile_of(Form(nm.Pattern(pattern), 1, 8, channels, (3, 3)))
        assert tile % m == 0
        assert 0 < tile <= layouts.LARGEST_TILE


def test_weight_of_another_pattern_does_not_belong() -> None:
    for layout in operands.LAYOUTS:
        weight = torch.zeros(4, 32)
        weight[:, :8] = 1.0  # 8:16, and not 4:8
        form, other = (layouts.form(weight, nm.Pattern(pattern)) for pattern in ("8:16", "4:8"))
        assert layouts.sizes(form, layout) == layouts.sizes(other, layout)
        packed = layouts.pack(weight, form, layout)
        assert layouts.belongs(*packed, form, layout)
        assert not layouts.belongs(*packed, other, layout)


def test_two_bits_a_step_where_m_divides_four() -> None:
    dense = torch.rand(16, 64) + 1
    for pattern, bits in (("2:4", 2), ("1:4", 2), ("1:2", 2), ("4:8", 4), ("1:16", 4)):
        form = layouts.form(dense, nm.Pattern(pattern))
        steps = 64 * form.pattern.n // form.pattern.m
        assert layouts.sizes(form, "rows")[1] == (-(-steps * bits // 32) * 16 + 16,)


def refused(error: type[nm.NMLearnError], text: str, weight: Tensor, pattern: str, **options: object) -> None:
    with pytest.raises(error, match=text) as raised:
        PackedLinear(weight, None, pattern, name="blocks.3.fc", **options)  # type: ignore[arg-type]
    assert raised.value.where == "blocks.3.fc"
    assert raised.value.given and raised.value.fix


def test_refusals_by_name() -> None:
    dense = torch.ones(4, 48)
    refused(ViolationError, r"48 of 48 groups break 2:4; the first is \[0, 0:4\] with 4", dense, "2:4")
    refused(PatternError, "48 input channels are not a multiple of 32", dense, "1:32", layout="tokens")
    refused(PatternError, "row lanes need a group size that divides 16", dense * 0, "2:6")
    refused(PatternError, "row lanes need a group size that divides 16", torch.zeros(4, 64), "1:32")
    refused(PatternError, "no inputs", torch.zeros(4, 0), "2:4")
    refused(KernelError, r"\[out, in\]", torch.zeros(4, 4, 1, 1), "2:4")
    refused(KernelError, r"\[out, in, \*kernel\]", torch.zeros(4), "2:4")
    for wrong in (torch.zeros(4, 4, dtype=torch.int8), torch.zeros(4, 4, device="meta"), torch.zeros(4, 4).cfloat()):
        refused(KernelError, "it must have data, of type", wrong, "2:4")
    refused(KernelError, "layout='columns'", torch.zeros(4, 4), "2:4", layout="columns")
    refused(KernelError, "activation='tanh'", torch.zeros(4, 4), "2:4", activation="tanh")
    for wrong in (torch.full((4, 4), torch.nan), torch.full((4, 4), torch.inf)):
        refused(KernelError, "int8 cannot represent them", wrong, "4:4", int8=True)


@pytest.mark.parametrize("dtype", layouts.WEIGHTS)
def test_int8_values(dtype: torch.dtype) -> None:
    """Half a step of error at most; a row's largest weight is exact but for one rounding; zeros stay zeros."""
    weight = operands.sparse((9, 32), "2:8", 0.3, dtype)
    weight[3] = 0
    weight[4] = 0
    weight[4, 5] = max(torch.finfo(dtype).tiny, torch.finfo(torch.float32).tiny)
    layer = PackedLinear(weight, None, "2:8", int8=True)
    assert layer.values.dtype == torch.int8
    found, rows = layer.dense_weight().double(), weight.double()
    step = rows.abs().amax(1, keepdim=True) / 127
    assert ((found - rows).abs() <= step * 0.51).all()
    assert (found[weight == 0] == 0).all()
