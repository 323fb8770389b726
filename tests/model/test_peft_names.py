"""The plan of a model with adapters of PEFT, and LBC beside them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import nmlearn as nm
from nmlearn.errors import PlanError
from peft_models import SMALL, bert, merge, peft, tokens, transformers, weights_of, with_adapter

# transformers' own attribute, which PEFT reads.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


def plan_of(model: nn.Module, rules: dict[str, Any] | None = None) -> dict[str, Any]:
    return {row.name: row for row in nm.Sparsifier(model, nm.LBC("2:4"), rules=rules).plan.rows}


def trainable(config: Any) -> nn.Module:
    model = peft.get_peft_model(bert(), config)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return model


def test_a_plan_leaves_adapters_dense_and_knows_the_head() -> None:
    everything = peft.LoraConfig(target_modules=["query", "classifier"], modules_to_save=["pooler"])
    rows = plan_of(trainable(everything))
    start = "base_model.model."
    query, head = f"{start}bert.encoder.layer.0.attention.self.query", f"{start}classifier"
    assert str(rows[f"{query}.base_layer.weight"].pattern) == "2:4"
    for name in ("lora_A", "lora_B"):
        assert rows[f"{query}.{name}.default.weight"].reason == "of an adapter: dense unless a rule names it"
        assert rows[f"{head}.{name}.default.weight"].pattern is None
    assert rows[f"{head}.base_layer.weight"].reason.startswith("output layer")
    assert "its copy in modules_to_save is used" in rows[f"{start}bert.pooler.original_module.dense.weight"].reason
    assert rows[f"{start}bert.pooler.modules_to_save.default.dense.weight"].pattern is not None


def test_rules_take_the_names_from_before_peft() -> None:
    model = trainable(peft.LoraConfig(target_modules=["query"], modules_to_save=["classifier"]))
    rules = {
        "bert.encoder.layer.0": "1:4",
        "bert.encoder.layer.1.attention.self.query.weight": None,
        "classifier": "1:4",
    }
    rows = plan_of(model, rules)
    start = "base_model.model.bert.encoder.layer"
    assert str(rows[f"{start}.0.attention.self.query.base_layer.weight"].pattern) == "1:4"
    assert str(rows[f"{start}.0.attention.self.key.weight"].pattern) == "1:4"
    assert rows[f"{start}.0.attention.self.query.lora_A.default.weight"].pattern is None
    assert rows[f"{start}.1.attention.self.query.base_layer.weight"].pattern is None
    assert str(rows["base_model.model.classifier.modules_to_save.default.weight"].pattern) == "1:4"
    assert rows["base_model.model.classifier.original_module.weight"].pattern is None
    with_current_names = plan_of(model, {f"{start}.0.attention.self.query.base_layer": "1:4"})
    assert str(with_current_names[f"{start}.0.attention.self.query.base_layer.weight"].pattern) == "1:4"


def test_an_adapter_is_sparse_when_a_rule_names_it() -> None:
    rows = plan_of(trainable(peft.LoraConfig(target_modules=["query"])), {"*": "2:4", "*.lora_A.*": "1:4"})
    named = {name: row.pattern for name, row in rows.items() if "lora_" in name}
    assert {str(pattern) for name, pattern in named.items() if "lora_A" in name} == {"1:4"}
    assert {pattern for name, pattern in named.items() if "lora_B" in name} == {None}


def test_a_frozen_base_is_refused_with_its_reason() -> None:
    rows = plan_of(peft.get_peft_model(bert(), peft.LoraConfig(target_modules=["query"])))
    assert all(row.pattern is None for row in rows.values())
    assert rows["base_model.model.bert.encoder.layer.0.attention.self.query.base_layer.weight"].reason.startswith(
        "frozen"
    )


def test_layers_of_others_called_base_layer_keep_their_names() -> None:
    model = nn.ModuleDict({"base_layer": nn.Linear(8, 8), "top": nn.ModuleDict({"base_layer": nn.Linear(8, 8)})})
    with pytest.raises(PlanError, match="matches no"):
        plan_of(model, {"top.weight": "2:4"})


def test_lbc_learns_the_base_while_an_adapter_is_attached() -> None:
    model = transformers.BertForSequenceClassification(transformers.BertConfig(num_attention_heads=2, **SMALL))
    adapted = with_adapter(model, peft.LoraConfig(target_modules=["query"], modules_to_save=["classifier"]))
    for parameter in adapted.parameters():
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(adapted.parameters(), 1e-3)
    sparsifier = nm.Sparsifier(adapted, nm.LBC("2:4", end=0.5), rules={"bert.pooler": None})
    sparsifier.attach(optimizer, 6)
    lora = {name: value for name, value in weights_of(adapted).items() if "lora_" in name}
    for _ in range(6):
        adapted(**tokens(), labels=torch.randint(2, (4,))).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    sparsifier.finalize()
    after = weights_of(adapted)
    assert all(not torch.equal(after[name], value) for name, value in lora.items())
    assert all((after[name] != 0).all() for name in lora)
    assert len(merge(adapted).weights) == 2
