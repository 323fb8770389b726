"""What nm.save and nm.load refuse: arguments in another order, folders, values that a model's types do not have."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import nmlearn as nm
from nmlearn.errors import ConfigError, FormatError, StateError
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
