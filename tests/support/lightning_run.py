"""A small network in Lightning's Trainer, which tests and the processes that they start share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F

from nets import batches, convnet, snapshot

STEPS, EPOCHS = 8, 3  # batches of an epoch, epochs


class Loader:
    """The same batches in every epoch; like a resumable loader of data it can go on in the middle."""

    def __init__(self) -> None:
        self.batches, self.next = batches(STEPS), 0

    def __len__(self) -> int:
        return STEPS

    def __iter__(self) -> Any:
        self.next %= STEPS
        while self.next < STEPS:
            self.next += 1
            yield self.batches[self.next - 1]

    def state_dict(self) -> dict[str, int]:
        return {"next": self.next}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.next = state["next"]


class Net(pl.LightningModule):
    """An ordinary module around the network of the other tests."""

    def __init__(self) -> None:
        super().__init__()
        self.model = convnet()

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return F.cross_entropy(self.model(batch[0]).float(), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        # The score of the dense model is the best: it grows with the weights that are there.
        alive = sum(float((p != 0).float().mean()) for p in self.parameters())
        self.log("score", alive + 0.01 * self.trainer.current_epoch, batch_size=1)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.05, momentum=0.9, weight_decay=1e-3)

    def train_dataloader(self) -> Any:
        return Loader()

    def val_dataloader(self) -> Any:
        return Loader()


def trainer(folder: Path, *callbacks: Any, **options: Any) -> Any:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "log_every_n_steps": 1}
    plain = {"accelerator": "cpu", "devices": 1, "enable_checkpointing": False, "limit_val_batches": 0}
    options = {"max_epochs": EPOCHS, "default_root_dir": folder} | quiet | plain | options
    return pl.Trainer(callbacks=list(callbacks), **options)


def fit(folder: Path, callback: Any, *others: Any, net: Any = None, ckpt_path: Any = None, **options: Any) -> Any:
    net = net or Net()
    trainer(folder, callback, *others, **options).fit(net, ckpt_path=ckpt_path)
    return net


class Watch(pl.Callback):
    """Copies what there is at the end of training, before the callbacks behind it finalize."""

    def __init__(self, callback: Any) -> None:
        self.callback = callback

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.weights, self.masks = snapshot(pl_module), self.callback.sparsifier.masks()
        moments = trainer.optimizers[0].state_dict()["state"].values()
        self.moments = [state["momentum_buffer"].clone() for state in moments]
        self.steps, self.total_steps = self.callback.sparsifier.step, self.callback.sparsifier.total_steps
