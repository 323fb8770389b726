"""Accelerated models are copied, stored, and saved as the dense models they were."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nmlearn as nm
from accelerated import network, packed, same, sparse_is_fast  # noqa: F401  (a fixture)
from nmlearn.errors import StateError
from nmlearn.lab.bench.weights import sparse_
from nmlearn.native import library as native

pytestmark = pytest.mark.skipif(not native.isa(), reason="the CPU kernels are not built")


def test_an_accelerated_model_can_be_copied_pickled_and_stored():
    model, x = network(), torch.randn(2, 3, 32, 32)
    nm.accelerate(model, x, cache=None)
    same(copy.deepcopy(model), model, x, 0)
    same(pickle.loads(pickle.dumps(model)), model, x, 0)
    state = model.state_dict()
    again = copy.deepcopy(model)
    for value in again.state_dict().values():
        value.zero_()
    again.load_state_dict(state)
    same(again, model, x, 0)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(16, 32), nn.LayerNorm(16), nn.Linear(32, 16, bias=False)

    def forward(self, x):
        return F.relu(self.last(F.gelu(self.first(self.norm(x)))) + x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_an_accelerated_model_is_saved_as_the_dense_model(tmp_path, dtype):
    images = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1, bias=False), nn.ReLU())
    for part, size in ((Residual(), (5, 16)), (images, (2, 4, 9, 9))):
        for layer in part.children():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                sparse_(layer.weight, "2:4")
        block, x = nn.Sequential(part).eval().to(dtype), torch.randn(size, dtype=dtype)
        dense = copy.deepcopy(block)
        nm.accelerate(block, x, cache=None)
        assert packed(block), "the test is about packed layers"
        nm.save(torch.compile(block), tmp_path / "m.safetensors")
        other = copy.deepcopy(dense)
        for parameter in other.parameters():
            parameter.data.fill_(3)
        tensors = nm.load(tmp_path / "m.safetensors", other)
        expected = dense.state_dict()
        assert tensors.keys() == expected.keys() and all(
            torch.equal(tensors[name], expected[name]) for name in expected
        )
        same(block, other, x, 1e-5 if dtype == torch.float32 else 0.05)
        before = copy.deepcopy(block.state_dict())
        with pytest.raises(StateError, match="give the dense model, and accelerate it afterwards"):
            nm.load(tmp_path / "m.safetensors", block)
        assert all(torch.equal(tensor, before[name]) for name, tensor in block.state_dict().items())


def test_state_that_a_block_does_not_use_is_kept(tmp_path):
    block = Residual()
    block.unused = nn.Linear(2, 2)
    sparse_(block.first.weight, "2:4")
    model = nn.Sequential(block).eval()
    names, x = set(model.state_dict()), torch.randn(5, 16)
    nm.accelerate(model, x, cache=None)
    nm.save(model, tmp_path / "m.safetensors")
    assert packed(model) == {"0.first"} and nm.load(tmp_path / "m.safetensors").keys() == names


def test_what_was_folded_or_rounded_is_not_saved_as_the_dense_model(tmp_path):
    folded = network()
    nm.accelerate(folded, torch.randn(1, 3, 32, 32), cache=None)
    rounded = nn.Sequential(nn.Linear(32, 16)).eval()
    sparse_(rounded[0].weight, "1:4")
    nm.accelerate(rounded, torch.randn(2, 32), int8=True, cache=None)
    for model, name, why in (
        (folded, "layer1.0.conv1.weight", "a batch norm was folded"),
        (rounded, "0.weight", "int8"),
    ):
        for again in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            with pytest.raises(StateError, match=f"{why}.*save the model before accelerating it") as caught:
                nm.save(again, tmp_path / "m.safetensors")
            assert caught.value.where == name
    assert not list(tmp_path.iterdir())
