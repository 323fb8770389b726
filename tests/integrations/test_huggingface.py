"""Packed folders of transformers: what from_pretrained loads is what was saved, and ordinary."""

from __future__ import annotations

import copy
import gc
import json
import tempfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import nmlearn as nm
from impossible_paths import NAMES
from nmlearn.errors import ConfigError, FormatError, StateError, WriteError
from nmlearn.files.model_file import stored
from nmlearn.lab.models import build
from packed_weights import same_bits

transformers = pytest.importorskip("transformers")

from nmlearn.integrations import transformers as packed  # noqa: E402

SMALL = {"vocab_size": 80, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
LLAMA = SMALL | {"num_attention_heads": 4, "num_key_value_heads": 2}
GPT2 = {"vocab_size": 80, "n_embd": 32, "n_layer": 2, "n_head": 2, "bos_token_id": 0, "eos_token_id": 0}


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The folder for temporary files; no test leaves an unpacked model in it."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield
    gc.collect()
    assert list(folder.glob("nmlearn-*")) == []


def sparse(model: torch.nn.Module) -> torch.nn.Module:
    """Cut what a sparsifier would take, and stacked experts, to 2:4."""
    experts = any("experts" in name for name, _ in model.named_parameters())
    for row in nm.Sparsifier(model, nm.OneShot("2:4"), rules={"*experts*": "2:4"} if experts else {}).plan.sparse:
        view = row.grouping.view(row.parameter.data)
        view.masked_fill_(torch.rand(view.shape).argsort(-1) >= 2, 0)
    return model


def bert() -> torch.nn.Module:
    return transformers.BertForMaskedLM(transformers.BertConfig(num_attention_heads=2, **SMALL))  # a tied decoder


def gpt2() -> torch.nn.Module:
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2))  # inputs along axis 0


def llama() -> torch.nn.Module:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA)).to(torch.bfloat16)


def mixtral() -> torch.nn.Module:
    config = transformers.MixtralConfig(num_local_experts=4, **LLAMA)  # experts are merged while they are loaded
    return transformers.MixtralForCausalLM(config).to(torch.float16)


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    one, other = a.state_dict(), b.state_dict()
    return one.keys() == other.keys() and all(same_bits(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("make", "auto", "axis", "count"),
    [
        (bert, "AutoModelForMaskedLM", 1, 2 * 6 + 1),  # with the layer before the tied decoder
        (gpt2, "AutoModelForCausalLM", 0, 8),
        (llama, "AutoModelForCausalLM", 1, 14),
        (mixtral, "AutoModelForCausalLM", 1, 2 * (4 + 4 * 3)),
    ],
)
def test_what_is_loaded_is_what_was_saved(tmp_path, make, auto, axis, count):
    torch.manual_seed(0)
    model = sparse(make())
    packed.save_packed(model, tmp_path / "packed")
    layouts = [one.encoding for one in stored(tmp_path / "packed" / "model.safetensors").values() if one.encoding]
    assert {(str(layout.grouping.pattern), layout.grouping.axis) for layout in layouts} == {("2:4", axis)}
    assert len(layouts) == count
    loaded = getattr(transformers, auto).from_pretrained(tmp_path / "packed")
    assert type(loaded) is type(model) and same(loaded, model)
    assert {type(a) for a in loaded.modules()} == {type(a) for a in model.modules()}
    assert not loaded.is_quantized and "quantization_config" not in loaded.config.to_dict()
    assert not hasattr(model.config, "quantization_config"), "the model that was saved is left as it was"


def test_a_folder_that_is_packed_in_mid_schedule_is_warned_of(tmp_path):
    model = bert()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    sparsifier = nm.Sparsifier(model, nm.LBC("2:4")).attach(optimizer, 20)
    with pytest.warns(UserWarning, match="a sparsifier is still removing values of 13 of these weights"):
        packed.save_packed(model, tmp_path / "packed")
    sparsifier.detach()
    packed.save_packed(model, tmp_path / "packed")


def test_an_accelerated_model_is_saved_as_the_dense_one(tmp_path):
    model = sparse(bert()).eval()
    before = copy.deepcopy(model)
    attention = model.bert.encoder.layer[0].attention.self
    attention.query = nm.PackedLinear(attention.query.weight, attention.query.bias, "2:4")
    packed.save_packed(model, tmp_path / "packed")
    loaded = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "packed")
    assert same(loaded, before)
    attention.query = nm.PackedLinear(before.bert.encoder.layer[0].attention.self.query.weight, None, "2:4", int8=True)
    with pytest.raises(StateError, match="save the model before accelerating it"):
        packed.save_packed(model, tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_weights_are_ordinary_memory_and_ties_hold(tmp_path):
    packed.save_packed(sparse(bert()), tmp_path)
    loaded = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path)
    assert loaded.cls.predictions.decoder.weight is loaded.bert.embeddings.word_embeddings.weight
    loaded.bert.embeddings.word_embeddings.weight.data.add_(1)
    again = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path)
    assert not same(loaded, again)


def test_the_body_of_a_model_and_another_type(tmp_path):
    model = sparse(bert())
    packed.save_packed(model, tmp_path)
    body = transformers.AutoModel.from_pretrained(tmp_path, add_pooling_layer=False, dtype=torch.bfloat16)
    weight = model.bert.encoder.layer[1].output.dense.weight
    assert same_bits(body.encoder.layer[1].output.dense.weight, weight.to(torch.bfloat16))


def test_a_finalized_model_is_saved_as_any(tmp_path):
    model = transformers.BertForSequenceClassification(transformers.BertConfig(num_attention_heads=2, **SMALL))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    sparsifier = nm.Sparsifier(model, nm.LBC("2:4")).attach(optimizer, total_steps=3)
    tokens, labels = torch.randint(64, (8, 6)), torch.randint(2, (8,))
    for _ in range(3):
        optimizer.zero_grad()
        model(input_ids=tokens, labels=labels).loss.backward()
        optimizer.step()
    sparsifier.finalize()
    model.save_pretrained(tmp_path / "dense")
    packed.save_packed(model, tmp_path / "packed")
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "packed")
    loaded.save_pretrained(tmp_path / "again")
    for folder in ("dense", "again"):
        assert "quantization_config" not in json.loads((tmp_path / folder / "config.json").read_text())
        file = load_file(tmp_path / folder / "model.safetensors")
        assert all(same_bits(tensor, model.state_dict()[name]) for name, tensor in file.items())
        assert same(transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / folder), model)
    sizes = [(tmp_path / folder / "model.safetensors").stat().st_size for folder in ("packed", "dense")]
    assert sizes[0] < 0.85 * sizes[1]  # of so small a model the dense rest and the header are a large part
    twin = copy.deepcopy(model)  # what was loaded learns on like the original
    for each in (twin, loaded):
        each.eval()(input_ids=tokens, labels=labels).loss.backward()
    assert torch.equal(twin.classifier.weight.grad, loaded.classifier.weight.grad)


def test_a_file_that_nm_save_wrote(tmp_path):
    model = sparse(bert())
    packed.save_packed(model, tmp_path)
    nm.save(model, tmp_path / "model.safetensors")  # with the tie that save_pretrained leaves out
    assert same(transformers.AutoModelForMaskedLM.from_pretrained(tmp_path), model)
    nm.save(model, tmp_path / "model.safetensors", packed=False)
    assert same(transformers.AutoModelForMaskedLM.from_pretrained(tmp_path), model)


def test_the_command_line_trains_on_from_a_packed_folder(tmp_path):
    model = transformers.BertForSequenceClassification(transformers.BertConfig(num_attention_heads=2, **SMALL))
    packed.save_packed(sparse(model), tmp_path)
    loaded = build(f"transformers:{tmp_path}", classes=2, input_shape=(6,), kind="text")
    assert same(loaded, model)


def test_several_files_are_refused(tmp_path):
    llama().save_pretrained(tmp_path, max_shard_size=20_000)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "nmlearn"}}))
    with pytest.raises(FormatError, match="files of weights: a packed model is one file"):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path)


def test_a_damaged_file_is_named(tmp_path):
    packed.save_packed(sparse(llama()), tmp_path)
    file = tmp_path / "model.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    with pytest.raises(FormatError, match=r"model\.safetensors: '.*weight\.nm_index'.*they were changed"):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path)


def test_packed_tensors_are_never_skipped(tmp_path, monkeypatch):
    """Were the unpacked file not taken, the packed weights would be left random."""
    packed.save_packed(sparse(llama()), tmp_path)
    monkeypatch.setattr(packed.PackedReader, "_process_model_before_weight_loading", lambda *_, **__: None)
    with pytest.raises(RuntimeError, match="conversion of the weights"):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path)


def test_what_is_refused_at_once(tmp_path):
    with pytest.raises(ConfigError, match="stay packed"):
        packed.PackedReader(packed.PackedConfig()).validate_environment(device_map={"": 0, "lm_head": "disk"})
    model = llama()
    model.config.quantization_config = transformers.BitsAndBytesConfig()
    with pytest.raises(ConfigError, match="another quantization"):
        packed.save_packed(model, tmp_path / "packed")
    assert not (tmp_path / "packed").exists()


@pytest.mark.parametrize("name", [*NAMES, "a file"])
def test_a_folder_that_cannot_be(tmp_path, name):
    (tmp_path / "a file").touch()
    with pytest.raises(WriteError):
        packed.save_packed(llama(), tmp_path / NAMES.get(name, name))
