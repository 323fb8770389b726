"""Small sparse models, and adapters of PEFT on them, for tests."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch
from torch import nn

import nmlearn as nm
from nmlearn.lab.models import external

if importlib.util.find_spec("peft") is None:
    pytest.skip("needs the optional package peft", allow_module_level=True)
transformers, peft = external.imported("transformers"), external.imported("peft")

from nmlearn.integrations.peft import Merged as Merged  # noqa: E402  tests import them from here, after the check above
from nmlearn.integrations.peft import merge as merge  # noqa: E402
from nmlearn.integrations.transformers import save_packed as save_packed  # noqa: E402

SMALL = {"vocab_size": 80, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
GPT2 = {"vocab_size": 80, "n_embd": 32, "n_layer": 2, "n_head": 2, "bos_token_id": 0, "eos_token_id": 0}
QUERY = "bert.encoder.layer.0.attention.self.query.weight"


def sparse(model: nn.Module, pattern: str = "2:4") -> nn.Module:
    """Cut what a sparsifier would take at random."""
    for row in nm.Sparsifier(model, nm.OneShot(pattern)).plan.sparse:
        view = row.grouping.view(row.parameter.data)
        view.masked_fill_(torch.rand(view.shape).argsort(-1) >= row.pattern.n, 0)
    return model


def bert() -> nn.Module:
    return sparse(transformers.BertForSequenceClassification(transformers.BertConfig(num_attention_heads=2, **SMALL)))


def gpt2() -> nn.Module:
    return sparse(transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2)))


def llama() -> nn.Module:
    config = transformers.LlamaConfig(num_attention_heads=4, num_key_value_heads=2, **SMALL)
    return sparse(transformers.LlamaForCausalLM(config))


def convolutions() -> nn.Module:
    return sparse(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(200, 2)))


def attention() -> nn.Module:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.attention, self.head = nn.Linear(16, 16), nn.MultiheadAttention(16, 2), nn.Linear(16, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.inner(x)
            return self.head(self.attention(x, x, x)[0])

    return sparse(Net())


def with_adapter(model: nn.Module, config: Any) -> Any:
    """A model with an adapter that does something: PEFT starts them at no effect."""
    model = peft.get_peft_model(model, config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn_like(parameter) * 0.1)
    return model


def tokens() -> dict[str, torch.Tensor]:
    return {"input_ids": torch.randint(80, (4, 8))}


def weights_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
