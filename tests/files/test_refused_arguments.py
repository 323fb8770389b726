"""What nm.save and nm.load refuse: arguments in another order, folders, values that a model's types do not have."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import nmlearn as nm
from nmlearn.errors import ConfigError, FormatError, StateError
from nmlearn.files import tensors
from packed_weights import same_bits

F8, F16, F32 = torch.float8_e5m2, torch.float16, torch.float32


@pytest.mark.parametrize(
    ("value", "dtype", "fits"),
    [
        (torch.tensor([1 + 2j]).to(torch.complex64), F32, False),
        (torch.tensor([1.0, 2]), torch.complex64, True),
        (torch.tensor([1.0, 7e4]), F16, False),
        (torch.tensor([1.0, torch.inf, torch.nan]), F16, True),  # they stay what they are
        (torch.tensor([1e-9, 1 / 3]), F16, True),
        (torch.tensor([1e300], dtype=torch.float64), torch.bfloat16, False),
        (torch.tensor([1e6]), F8, False),
        (torch.tensor([449.0]), torch.float8_e4m3fn, False),  # torch makes it 448, as it does infinity
        (torch.tensor([torch.inf]), torch.float8_e4m3fn, False),
        (torch.tensor([448.0]), torch.float8_e4m3fn, True),
        (torch.tensor([1.5]).to(F8), F32, True),
        (torch.tensor([100_000]), F16, False),
        (torch.tensor([2.5]), torch.int64, False),
        (torch.tensor([torch.nan]), torch.int64, False),
        (torch.tensor([-1, 3], dtype=torch.int8), torch.uint8, False),
        (torch.tensor([300, 3]), torch.uint8, False),
        (torch.tensor([255, 3]), torch.uint8, True),
        (torch.tensor([0, 1], dtype=torch.uint8), torch.bool, True),
        (torch.tensor([0, 2], dtype=torch.uint8), torch.bool, False),
        (torch.tensor([2**53, -(2**53), 2**62, -(2**63)]), torch.float64, True),
        (torch.tensor([2**53 + 1]), torch.float64, False),
        (torch.tensor([-(2**53) - 1]), torch.float64, False),
        (torch.tensor([2**63 - 1]), torch.float64, False),
        (torch.tensor([2**24 + 1], dtype=torch.int32), F32, False),
        (torch.tensor([2**24 + 1], dtype=torch.int32), torch.float64, True),
        (torch.tensor([2**64 - 1], dtype=torch.uint64), torch.float64, False),
        (torch.tensor([2**63, 2**63 + 2**11], dtype=torch.uint64), torch.float64, True),
        (torch.tensor([65_535], dtype=torch.uint16), torch.bfloat16, False),
        (torch.tensor([True]), F16, True),
        (torch.tensor([2**63 - 1]), torch.uint64, True),
        (torch.tensor([-1]), torch.uint64, False),
        (torch.tensor([2.0**63]), torch.uint64, True),
        (torch.tensor([2.0**64]), torch.uint64, False),
        (torch.tensor([2.0**63]), torch.int64, False),
        (torch.tensor([2**63 - 1], dtype=torch.uint64), torch.int64, True),
        (torch.tensor([2**63], dtype=torch.uint64), torch.int64, False),
        (torch.tensor([2**32], dtype=torch.uint64), torch.uint32, False),
        (torch.tensor([1e300], dtype=torch.float64), torch.complex64, False),
        (torch.tensor([1e300], dtype=torch.float64), torch.complex128, True),
        (torch.tensor([1.0, torch.inf], dtype=torch.float64), torch.complex64, True),
        (torch.tensor([2**53 + 1]), torch.complex128, False),
        (torch.tensor([1 + 2j]), torch.complex128, True),
        (torch.tensor([0.0]), torch.float8_e8m0fnu, False),  # it has powers of two alone
        (torch.tensor([-2.0]), torch.float8_e8m0fnu, False),
        (torch.tensor([2.0]), torch.float8_e8m0fnu, True),
    ],
)
def test_values_that_the_types_of_a_model_do_not_have(tmp_path, value, dtype, fits):
    model = nn.Linear(2, 2)
    model.register_buffer("extra", torch.zeros(value.shape, dtype=dtype))
    nm.save(dict(nn.Linear(2, 2).state_dict()) | {"extra": value}, tmp_path / "m.safetensors")
    before = copy.deepcopy(model.state_dict())
    if fits:
        nm.load(tmp_path / "m.safetensors", model)
        assert same_bits(model.extra, value.to(dtype))
    else:
        with pytest.raises(StateError, match=r"extra: .* in the file"):
            nm.load(tmp_path / "m.safetensors", model)
        assert all(same_bits(tensor, before[name]) for name, tensor in model.state_dict().items())


@settings(max_examples=300, deadline=None)
@given(
    st.integers(-(2**63), 2**64 - 1)
    | st.builds(lambda power, more: 2**power + more, st.integers(0, 63), st.integers(-3, 3)),
    st.sampled_from([torch.float64, F32, torch.bfloat16, torch.int64, torch.uint64, torch.int32, torch.uint16]),
)
def test_a_whole_number_is_taken_where_it_stays_itself(number: int, dtype: torch.dtype) -> None:
    held = torch.tensor([number], dtype=torch.uint64 if number >= 2**63 else torch.int64)
    stays = int(held.to(dtype).item()) == number
    assert (not tensors._not_castable(held, dtype)) == stays


def test_arguments_in_another_order(tmp_path):
    net, path = nn.Linear(4, 4), tmp_path / "m.safetensors"
    for call, fix in (
        (lambda: nm.save(path, net), "write nm.save(model, path)"),
        (lambda: nm.save(str(path), net.state_dict()), "write nm.save(model, path)"),
        (lambda: nm.load(net, path), "write nm.load(path, model)"),
        (lambda: nm.load(path, net.state_dict()), "write nm.load(path, model)"),
    ):
        with pytest.raises(ConfigError) as caught:
            call()
        assert caught.value.fix == fix and caught.value.where in fix and caught.value.wrong and caught.value.given
    assert not list(tmp_path.iterdir())


def test_a_folder_is_answered_with_the_files_in_it(tmp_path):
    nm.save(nn.Linear(4, 4), tmp_path / "model.safetensors")
    with pytest.raises(FormatError, match=r"not a file; give a safetensors file in it: model\.safetensors"):
        nm.load(tmp_path)


def test_what_could_not_be_read_again_is_not_written(tmp_path):
    """Names and metadata of more than 4 MiB and a sixteenth of the data."""
    path, longest = tmp_path / "m.safetensors", 4 << 20
    for packed in (True, False):
        nm.save({"a": torch.ones(2)}, path, packed, metadata={"x": "y" * (longest - 1000)})
        assert nm.load(path).keys() == {"a"}
        with pytest.raises(StateError, match=r"may have 4,194,304; join small tensors") as caught:
            nm.save({"a": torch.ones(2)}, path, packed, metadata={"x": "y" * longest})
        assert caught.value.where == str(path) and nm.load(path).keys() == {"a"}
        nm.save({"a": torch.ones(1 << 18)}, path, packed, metadata={"x": "y" * longest})
        assert nm.load(path)["a"].sum() == 1 << 18
    assert list(tmp_path.iterdir()) == [path]
