"""MiniLM on WordNet's noun definitions, for experiments/leaderboard.py; it needs what pretrained_minilm.py does.

4,000 definitions once, 125 steps of 32 with 24 tokens each, float32, word embeddings frozen.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from nmlearn.lab import data
from pretrained_minilm import HELD_OUT, checked_folder, network, read

TRAIN, TEST, HELD, BATCH, LENGTH = 4000, 2000, 1500, 32, 24


def task() -> MiniLM:
    return MiniLM()


class MiniLM:
    """24 classes by definitions; a new classifier on the mean of the encoder's outputs."""

    name, steps, rates = "minilm", TRAIN // BATCH, (3e-4, 7e-4, 1.5e-3)

    def __init__(self) -> None:
        self.folder = checked_folder()
        self.hidden, self.rules = {"encoder.encoder.layer.*": 1.0}, {"classifier": None}
        source = data.load("wordnet", tokenizer=str(self.folder), length=LENGTH)
        self.train = read(source, range(TRAIN))
        self.held = read(source, range(source.train_size - HELD_OUT, source.train_size)[:HELD])
        self.test = next(iter(source.read_eval([torch.arange(TEST)])))
        sizes = {"train": TRAIN, "test": TEST, "held_out": HELD, "batch": BATCH, "length": LENGTH}
        self.recipe: dict[str, Any] = sizes | {"steps": self.steps, "rates": self.rates, "hidden": self.hidden}

    def start(self, seed: int) -> nn.Module:
        model = network(self.folder)
        model.encoder.embeddings.word_embeddings.requires_grad_(False)
        return model.train()

    def batches(self, seed: int) -> list[tuple[Tensor, Tensor]]:
        order = torch.randperm(TRAIN, generator=torch.Generator().manual_seed(seed))
        return [(self.train[0][some], self.train[1][some]) for some in order.split(BATCH)]

    def inputs(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        return {"input_ids": batch[0], "attention_mask": (batch[0] != 0).long()}

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        found: Tensor = model(**self.inputs(batch), labels=batch[1])["loss"]
        return found

    @torch.no_grad()
    def score(self, model: nn.Module, held_out: bool) -> float:
        tokens, labels = self.held if held_out else self.test
        model.eval()
        right = [
            model(**self.inputs((some, some)))["logits"].argmax(-1) == own
            for some, own in zip(tokens.split(100), labels.split(100), strict=True)
        ]
        return 100 * float(torch.cat(right).double().mean())
