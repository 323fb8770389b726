"""A training loop with Hugging Face's accelerate, which tests and their spawned processes share."""

from __future__ import annotations

from typing import Any

import accelerate
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import nmlearn as nm


class Run:
    """A loop as accelerate's documentation has it, with a sparsifier; 8 batches an epoch."""

    def __init__(self, method: nm.Method, steps: int = 16, seed: int = 0, **options: Any) -> None:
        torch.manual_seed(seed)
        self.accelerator = accelerate.Accelerator(cpu=True, **options)
        model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))
        generator = torch.Generator().manual_seed(1)
        x, y = torch.randn(64, 16, generator=generator), torch.randint(4, (64,), generator=generator)
        loader, optimizer = DataLoader(TensorDataset(x, y), batch_size=8), torch.optim.AdamW(model.parameters(), 1e-2)
        self.model, self.optimizer, self.loader = self.accelerator.prepare(model, optimizer, loader)
        self.sparsifier = nm.Sparsifier(self.model, method).attach(self.optimizer, steps)
        self.accelerator.register_for_checkpointing(self.sparsifier)

    def epoch(self) -> None:
        for x, y in self.loader:
            with self.accelerator.accumulate(self.model):
                self.accelerator.backward(F.cross_entropy(self.model(x), y))
                if self.accelerator.sync_gradients:
                    self.accelerator.clip_grad_norm_(self.model.parameters(), 0.5)
                self.optimizer.step()
                self.optimizer.zero_grad()

    def state(self) -> dict[str, Any]:
        parts = {"model": self.model, "optimizer": self.optimizer.optimizer, "sparsifier": self.sparsifier}
        return {name: part.state_dict() for name, part in parts.items()} | {"masks": self.sparsifier.masks()}
