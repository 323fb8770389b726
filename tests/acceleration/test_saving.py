"""Accelerated models are copied, stored, and saved as the dense models they were."""

from __future__ import annotations

import copy
import io
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


def language_model():
    """A bert with every layer 2:4, the decoder that is tied to the embeddings too."""
    transformers = pytest.importorskip("transformers")
    small = {"vocab_size": 80, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    model = transformers.BertForMaskedLM(transformers.BertConfig(num_attention_heads=2, **small)).eval()
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            sparse_(layer.weight, "2:4")
    return model


def transformers_folder(model, folder):
    model.save_pretrained(folder)


def transformers_shards(model, folder):
    model.save_pretrained(folder, max_shard_size=10_000)
    assert len(list(folder.glob("*.safetensors"))) > 1, "the test is about several files"


def accelerates_state(model, folder):
    model.save_pretrained(folder, state_dict=pytest.importorskip("accelerate").Accelerator().get_state_dict(model))


def accelerates_file(model, folder):
    pytest.importorskip("accelerate").Accelerator().save_model(model, folder)
    model.config.save_pretrained(folder)


def accelerates_pickle(model, folder):
    accelerate = pytest.importorskip("accelerate")
    accelerate.Accelerator().save_model(model, folder, safe_serialization=False)


WRITERS = [transformers_folder, transformers_shards, accelerates_state, accelerates_file]


@pytest.mark.parametrize("write", WRITERS)
def test_what_other_libraries_write_of_an_accelerated_model_is_the_dense_model(tmp_path, write):
    model, x = language_model(), torch.randint(80, (2, 6))
    dense = copy.deepcopy(model)
    nm.accelerate(model, x, cache=None)
    assert len(packed(model)) == 2 * 6 + 2
    write(model, tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    assert all(torch.equal(tensor, dense.state_dict()[name]) for name, tensor in loaded.state_dict().items())
    same_logits(loaded, dense, x, 0)
    same_logits(loaded, model, x, 1e-5)


def same_logits(model, reference, x, tolerance):
    with torch.inference_mode():
        torch.testing.assert_close(model(x).logits, reference(x).logits, rtol=tolerance, atol=tolerance)


def test_a_pickle_by_accelerate_is_the_dense_model(tmp_path):
    model = language_model()
    dense = copy.deepcopy(model)
    nm.accelerate(model, torch.randint(80, (2, 6)), cache=None)
    accelerates_pickle(model, tmp_path)
    state = torch.load(tmp_path / "pytorch_model.bin")
    assert state.keys() == dense.state_dict().keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in dense.state_dict().items())


def test_a_folder_of_the_hubs_mixin_is_the_dense_model(tmp_path):
    mixin = pytest.importorskip("huggingface_hub").PyTorchModelHubMixin

    class Small(nn.Module, mixin):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(32, 16)

        def forward(self, x):
            return self.layer(x)

    model, x = Small().eval(), torch.randn(3, 32)
    sparse_(model.layer.weight, "1:4")
    nm.accelerate(model, x, cache=None)
    assert packed(model)
    model.save_pretrained(tmp_path)
    same(Small.from_pretrained(tmp_path), model, x)


def test_a_plain_state_and_a_checkpoint_to_resume_are_those_of_this_model(tmp_path):
    """They are loaded into this model: by torch, and by accelerate's load_state."""
    model, x = language_model(), torch.randint(80, (2, 6))
    nm.accelerate(model, x, cache=None)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    state = torch.load(io.BytesIO(file.getvalue()))
    name = "bert.encoder.layer.0.output.dense"
    assert name in packed(model) and {f"{name}.values", f"{name}.index"} <= state.keys()
    assert f"{name}.weight" not in state
    accelerator, twin = pytest.importorskip("accelerate").Accelerator(), copy.deepcopy(model)
    prepared = accelerator.prepare_model(model, evaluation_mode=True)
    accelerator.save_state(tmp_path)
    for tensor in prepared.state_dict().values():
        tensor.zero_()
    accelerator.load_state(tmp_path)
    same_logits(prepared, twin, x, 0)


@pytest.mark.parametrize("write", [*WRITERS, accelerates_pickle])
def test_other_libraries_write_no_weights_that_were_rounded(tmp_path, write):
    model = language_model()
    nm.accelerate(model, torch.randint(80, (2, 6)), int8=True, cache=None)
    assert packed(model)
    with pytest.raises(StateError, match="int8; save the model before accelerating it") as caught:
        write(model, tmp_path)
    assert caught.value.where == "bert.encoder.layer.0.attention.self.query.weight"
    assert not [*tmp_path.glob("*.safetensors"), *tmp_path.glob("*.bin")]
