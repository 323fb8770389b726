"""A small BERT in the Trainer of transformers, which tests and their spawned processes share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from torch.utils.data import Dataset

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
    data = {"train_dataset": Sentences(), "eval_dataset": Sentences(4)}
    return transformers.Trainer(model, args, callbacks=list(callbacks), **data)
