"""NMCallback in the Trainer of transformers: the same learning as in a plain loop, safe to stop and to resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset

import nmlearn as nm

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from nmlearn.integrations.transformers import NMCallback  # noqa: E402
from nmlearn.integrations.transformers_trainer import FILE  # noqa: E402

SMALL = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


class Sentences(Dataset):
    """Random tokens; the label says which half has the smaller sum."""

    def __init__(self, count: int = 32) -> None:
        self.tokens = torch.randint(64, (count, 8), generator=torch.Generator().manual_seed(1))
        first, second = self.tokens.chunk(2, dim=1)
        self.labels = (second.sum(1) < first.sum(1)).long()

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.tokens[i], "labels": self.labels[i]}


def bert(seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return transformers.BertForSequenceClassification(transformers.BertConfig(**SMALL))


def trainer(folder: Path, model: torch.nn.Module, *callbacks: Any, **options: Any) -> Any:
    options = {"max_steps": 8, "logging_steps": 4, "save_strategy": "no", "report_to": "none"} | options
    plain = {"per_device_train_batch_size": 4, "use_cpu": True, "disable_tqdm": True, "learning_rate": 1e-2}
    args = transformers.TrainingArguments(output_dir=str(folder), **(plain | options))
    return transformers.Trainer(model, args, train_dataset=Sentences(), callbacks=list(callbacks))


def fits(model: torch.nn.Module, callback: NMCallback) -> bool:
    named = dict(model.named_parameters())
    rows = callback.plan.taken
    return all(int((row.grouping.view(named[row.name]) != 0).sum(-1).max()) == row.pattern.n for row in rows)


def test_the_same_as_attaching_by_hand(tmp_path):
    callback = NMCallback(nm.LBC("2:4"), rules={"*.query": "1:4"})
    one = trainer(tmp_path, bert(), callback)
    assert len(callback.plan.taken) == 13 and not callback.sparsifier.total_steps, "planned before training"
    one.train()
    model = bert()
    optimizer = trainer(tmp_path, model).create_optimizer()
    sparsifier = nm.Sparsifier(model, nm.LBC("2:4"), rules={"*.query": "1:4"}).attach(optimizer, 8)
    other = trainer(tmp_path, model)
    other.optimizer = optimizer
    other.train()
    assert sparsifier.step == 8 and callback.sparsifier.total_steps == 0, "detached at the end"
    assert same(one.model.state_dict(), other.model.state_dict())
    assert fits(one.model, callback)


@pytest.mark.parametrize("method", [nm.LBC("2:4"), nm.SRSTE("2:4"), nm.Gradual("2:4")], ids=lambda m: m.name)
def test_resumes_bit_for_bit(method, tmp_path):
    whole, second = (NMCallback(method, finalize=False) for _ in range(2))
    one = trainer(tmp_path / "one", bert(), whole, save_strategy="steps", save_steps=3)
    one.train()
    checkpoint = tmp_path / "one" / "checkpoint-3"
    assert (checkpoint / FILE).exists() and list(checkpoint.glob("*.partial")) == []
    other = trainer(tmp_path / "two", bert(seed=1), second)
    other.train(resume_from_checkpoint=str(checkpoint))
    assert same(one.model.state_dict(), other.model.state_dict())
    assert same(one.optimizer.state_dict()["state"], other.optimizer.state_dict()["state"])
    assert same(whole.sparsifier.masks(), second.sparsifier.masks())
    assert same(whole.sparsifier.state_dict(), second.sparsifier.state_dict())


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
