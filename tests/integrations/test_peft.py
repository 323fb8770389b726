"""Adapters of PEFT on a sparse base: its zeros stay while adapters train, are merged and saved."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import nmlearn as nm
from nmlearn.errors import ConfigError, PlanError, ViolationError
from peft_models import (
    QUERY,
    SMALL,
    Merged,
    attention,
    bert,
    convolutions,
    gpt2,
    llama,
    merge,
    peft,
    save_packed,
    sparse,
    tokens,
    transformers,
    weights_of,
    with_adapter,
)

# transformers' own attribute, which PEFT reads.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

CASES = {
    "lora": (bert, peft.LoraConfig(target_modules=["query", "dense"])),
    "rslora": (llama, peft.LoraConfig(target_modules="all-linear", use_rslora=True)),
    "dora": (llama, peft.LoraConfig(target_modules=["q_proj", "down_proj"], use_dora=True)),
    "gpt2": (gpt2, peft.LoraConfig(target_modules=["c_attn", "c_proj"], fan_in_fan_out=True)),
    "adalora": (llama, peft.AdaLoraConfig(target_modules=["q_proj"], total_step=10)),
    "loha": (llama, peft.LoHaConfig(target_modules=["q_proj"])),
    "lokr": (llama, peft.LoKrConfig(target_modules=["q_proj"])),
    "ia3": (llama, peft.IA3Config(target_modules=["q_proj", "down_proj"], feedforward_modules=["down_proj"])),
    "oft": (llama, peft.OFTConfig(target_modules=["q_proj"], oft_block_size=4)),
    "vera": (llama, peft.VeraConfig(target_modules=["q_proj"])),
    "convolution": (convolutions, peft.LoraConfig(target_modules=["1"])),
    "attention": (attention, peft.LoraConfig(target_modules=["attention"])),
    "whole": (bert, peft.LoraConfig(target_modules=["query"], modules_to_save=["intermediate"])),
}
INPUTS = {"convolution": lambda: torch.randn(2, 3, 9, 9), "attention": lambda: (torch.randn(5, 2, 16),)}


@pytest.mark.parametrize("name", CASES)
def test_merging_keeps_the_zeros_and_counts_the_cost(name: str) -> None:
    make, config = CASES[name]
    model = make()
    base = weights_of(model)
    adapted = with_adapter(model, config)
    dense = weights_of(copy.deepcopy(adapted).merge_and_unload())
    inputs = INPUTS.get(name, tokens)()
    merged = merge(adapted, inputs=inputs)

    rows = {row.name: row for row in merged.weights}
    changed = {name for name in base if base[name].dim() > 1 and not torch.equal(base[name], dense[name])}
    assert rows.keys() == changed and rows
    for name_, weight in weights_of(merged.model).items():
        if name_ not in rows:
            assert torch.equal(weight, dense[name_]), name_
            continue
        kept = base[name_] != 0
        assert torch.equal(weight, torch.where(kept, dense[name_], 0.0)), name_
        axis = 0 if name == "gpt2" else 1
        assert not nm.Grouping("2:4", axis).violation(weight != 0)
        assert nm.Grouping("1:4", axis).violation(weight != 0)
        update, lost = dense[name_] - base[name_], dense[name_] * ~kept
        assert rows[name_].update == pytest.approx(float(update.norm() / base[name_].norm()), rel=1e-4)
        assert rows[name_].lost == pytest.approx(float(lost.square().sum() / update.square().sum()), rel=1e-4)
        assert rows[name_].change == pytest.approx(float(lost.norm() / dense[name_].norm()), rel=1e-4)
    assert merged.outputs.base > 0
    scales = name == "ia3"  # rows and columns are scaled: nothing falls on a zero
    assert all((row.lost == 0) == scales for row in merged.weights)
    assert merged.outputs.merged < 1e-5 if scales else merged.outputs.merged > 1e-6


def test_outputs_are_measured_against_the_adapter_beside_the_base() -> None:
    torch.manual_seed(1)
    adapted, inputs = (
        with_adapter(bert(), peft.LoraConfig(target_modules=["query", "dense"], lora_dropout=0.5)),
        tokens(),
    )
    adapted.train()
    before = copy.deepcopy(adapted).eval()
    with torch.no_grad():
        expected = before(**inputs).logits
        with before.disable_adapter():
            plain = before(**inputs).logits
        merged = merge(adapted, inputs=inputs)
        ours = merged.model.eval()(**inputs).logits
    assert merged.outputs.merged == pytest.approx(float((ours - expected).norm() / expected.norm()), rel=1e-4)
    assert merged.outputs.base == pytest.approx(float((plain - expected).norm() / expected.norm()), rel=1e-4)
    assert all(f"{row.lost:.2%}" in str(merged) and row.name in str(merged) for row in merged.weights)
    assert f"outputs off by {merged.outputs.merged:.2%}" in str(merged)


def test_measuring_leaves_the_modes_of_modules_alone() -> None:
    adapted = with_adapter(bert(), peft.LoraConfig(target_modules=["query"])).train()
    adapted.base_model.model.bert.pooler.eval()
    modes = {name: module.training for name, module in adapted.named_modules()}
    merge(adapted, inputs=tokens(), unload=False)
    assert {name: module.training for name, module in adapted.named_modules()} == modes


@pytest.mark.parametrize("name", ["lora", "dora", "oft", "whole", "attention"])
@pytest.mark.filterwarnings("ignore:All adapters are already merged", "ignore:Already unmerged")  # PEFT of out_proj
def test_a_merge_that_stays_can_be_undone_bit_for_bit(name: str) -> None:
    make, config = CASES[name]
    adapted = with_adapter(make(), config)
    before, expected = weights_of(adapted), merge(copy.deepcopy(adapted)).model
    merged = merge(adapted, unload=False)
    inside = {row.name for row in merged.weights}
    assert merged.model is adapted
    assert {
        n for n, w in weights_of(expected).items() if n in inside and not nm.Grouping("2:4", 1).violation(w != 0)
    } == inside
    merged.unmerge()
    after = weights_of(adapted)
    assert after.keys() == before.keys() and all(torch.equal(after[n], before[n]) for n in before)
    with pytest.raises(ConfigError, match="no adapter is merged"):
        merged.unmerge()


def test_unmerge_of_peft_alone_would_break_the_pattern() -> None:
    adapted = with_adapter(llama(), peft.LoraConfig(target_modules=["q_proj"]))
    merge(adapted, unload=False)
    adapted.unmerge_adapter()
    weight = adapted.base_model.model.model.layers[0].self_attn.q_proj.base_layer.weight
    assert nm.Grouping("2:4", 1).violation(weight != 0)


def test_several_and_weighted_adapters() -> None:
    config = peft.LoraConfig(target_modules=["query"])
    model = with_adapter(bert(), config)
    model.add_adapter("other", config)
    for name, parameter in model.named_parameters():
        if "lora_B.other" in name:
            parameter.data.normal_()
    model.add_weighted_adapter(["default", "other"], [0.5, 2.0], "mixed", combination_type="cat")
    deltas = {}
    for adapters in (["default"], ["other"], ["default", "other"], ["mixed"]):
        model.base_model.set_adapter(adapters)
        each = copy.deepcopy(model)
        base = each.base_model.model.bert.encoder.layer[0].attention.self.query.base_layer.weight.detach().clone()
        merged = merge(each, adapters)
        weight = merged.model.get_parameter(QUERY).detach()
        assert not nm.Grouping("2:4", 1).violation(weight != 0)
        deltas["+".join(adapters)] = weight - base
    torch.testing.assert_close(deltas["default+other"], deltas["default"] + deltas["other"], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(deltas["mixed"], 0.5 * deltas["default"] + 2 * deltas["other"], atol=1e-5, rtol=1e-5)


def test_a_tied_head_stays_tied_and_dense() -> None:
    model = sparse(transformers.LlamaForCausalLM(transformers.LlamaConfig(num_attention_heads=4, **SMALL)))
    model.config.tie_word_embeddings = True
    model.lm_head.weight = model.model.embed_tokens.weight
    merged = merge(with_adapter(model, peft.LoraConfig(target_modules=["q_proj", "v_proj"])))
    assert merged.model.lm_head.weight is merged.model.model.embed_tokens.weight
    assert {row.name.split(".")[-2] for row in merged.weights} == {"q_proj", "v_proj"}


def test_patterns_are_verified_or_left() -> None:
    adapted = with_adapter(bert(), peft.LoraConfig(target_modules=["query", "key"]))
    with pytest.raises(ViolationError, match=r"query.*1:4"):
        merge(adapted, patterns={"*.query": "1:4"})
    with pytest.raises(PlanError, match="matches no"):
        merge(adapted, patterns={"nothing": "2:4"})
    merged = merge(adapted, patterns={"*.0.*.query.weight": None, "*.key": "2:4"})
    assert len(merged.weights) == 3 and QUERY not in {row.name for row in merged.weights}
    assert float((merged.model.get_parameter(QUERY) != 0).float().mean()) > 0.99


def test_refusals() -> None:
    lora = peft.LoraConfig(target_modules=["query"])
    with pytest.raises(ConfigError, match="no adapter"):
        merge(bert())
    prompts = peft.get_peft_model(llama(), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4))
    with pytest.raises(ConfigError, match="prompts cannot be merged"):
        merge(prompts)
    adapted = with_adapter(bert(), lora)
    with pytest.raises(ConfigError, match="no adapter other"):
        merge(adapted, ["default", "other"])
    adapted.merge_adapter()
    with pytest.raises(ConfigError, match="already merged into it"):
        merge(adapted)
    dense = transformers.BertForSequenceClassification(transformers.BertConfig(num_attention_heads=2, **SMALL))
    with pytest.raises(ConfigError, match="none of its 2 weights"):
        merge(with_adapter(dense, lora))
    rewritten = peft.get_peft_model(bert(), peft.LoraConfig(target_modules=["query"], init_lora_weights="pissa"))
    with pytest.raises(ConfigError, match="PiSSA"):
        merge(rewritten)
    quantized = with_adapter(bert(), lora)
    layer = quantized.base_model.model.bert.encoder.layer[0].attention.self.query.base_layer
    layer.weight = nn.Parameter(torch.ones(32, 32, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ConfigError, match="quantized"):
        merge(quantized)
    lost = with_adapter(bert(), lora)
    before = weights_of(lost)
    lost.base_model.model.bert.encoder.layer[1].attention.self.query.lora_A["default"].weight.data[0, 0] = math.nan
    with pytest.raises(ConfigError, match="not finite"):
        merge(lost)
    after = weights_of(lost)
    assert all(torch.equal(after[name], before[name]) for name in before if "lora_A" not in name)
    with pytest.raises(ConfigError, match="PEFT adapters"):
        save_packed(with_adapter(bert(), lora), "never written")


def test_training_an_adapter_leaves_the_base_and_its_file_alone(tmp_path: Path) -> None:
    save_packed(llama(), tmp_path / "base")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    base = weights_of(model)
    adapted = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"]))
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], 1e-2, weight_decay=0.1)
    batch = tokens()
    losses = []
    for _ in range(5):
        loss = adapted(**batch, labels=batch["input_ids"]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    adapted.save_pretrained(tmp_path / "adapter")
    assert all("lora_" in name for name in load_file(tmp_path / "adapter" / "adapter_model.safetensors"))

    loaded = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")  # finds the packed base by its path
    torch.testing.assert_close(loaded.eval()(**batch).logits, adapted.eval()(**batch).logits)
    after = weights_of(loaded.unload())
    assert after.keys() == base.keys() and all(torch.equal(after[name], base[name]) for name in base)


def test_a_merged_model_packs_and_trains_on(tmp_path: Path) -> None:
    merged: Merged = merge(with_adapter(bert(), peft.LoraConfig(target_modules=["query"])))
    save_packed(merged.model, tmp_path / "merged")
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    assert torch.equal(loaded.get_parameter(QUERY), merged.model.get_parameter(QUERY))
    for parameter in merged.model.parameters():
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(merged.model.parameters(), 1e-3)
    sparsifier = nm.Sparsifier(merged.model, nm.Keep("2:4"))
    sparsifier.attach(optimizer, 2)
    for _ in range(2):
        merged.model(**tokens(), labels=torch.zeros(4, dtype=torch.long)).loss.backward()
        optimizer.step()
    sparsifier.finalize()


@pytest.mark.parametrize(("pattern", "share"), [("2:4", 0.5), ("1:4", 0.75)])
def test_lora_knows_nothing_of_the_zeros(pattern: str, share: float) -> None:
    config = transformers.BertConfig(num_attention_heads=2, **SMALL)
    model = sparse(transformers.BertForSequenceClassification(config), pattern)
    merged = merge(with_adapter(model, peft.LoraConfig(target_modules=["query", "dense"])))
    shares = [row.lost for row in merged.weights]
    assert sum(shares) / len(shares) == pytest.approx(share, abs=0.05)


def test_peft_replaces_the_weights_of_torch_attention_on_every_call() -> None:
    adapted = with_adapter(attention(), peft.LoraConfig(target_modules=["attention"]))
    layer = adapted.base_model.model.attention.base_layer
    before = layer.in_proj_weight
    adapted(torch.randn(5, 2, 16))
    assert layer.in_proj_weight is not before
