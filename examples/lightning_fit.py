"""LBC in Lightning's Trainer: one callback, on an ordinary LightningModule.

    python examples/lightning_fit.py [epochs]

It needs the package lightning. The data is the Fashion-MNIST inside nmlearn.
"""

import sys
import tempfile

import torch
import torch.nn.functional as F
from torch import nn

import nmlearn as nm
from nmlearn.integrations.lightning import NMCallback  # before lightning: it makes some torchvisions importable
from nmlearn.lab import data

import lightning.pytorch as pl  # isort: skip
from lightning.pytorch.callbacks import ModelCheckpoint  # isort: skip

EPOCHS = int(sys.argv[1]) if len(sys.argv) > 1 else 4


class Classifier(pl.LightningModule):
    """An ordinary module; nothing in it knows about sparsity."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(
            nn.Conv2d(1, 16, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * 7 * 7, 128),
            nn.ReLU(),
            nn.Linear(128, 10),
        )

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        return F.cross_entropy(self.model(batch[0]), batch[1])

    def validation_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        right = (self.model(batch[0]).argmax(1) == batch[1]).float().mean()
        self.log("accuracy", right, prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), 1e-3)


def loader(images: torch.Tensor, labels: torch.Tensor, shuffle: bool) -> torch.utils.data.DataLoader:
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, labels), 100, shuffle=shuffle)


def main() -> None:
    pl.seed_everything(0)
    task = data.load("fashion-mnist", augment="none", train_limit=5000, eval_limit=1000)
    train = loader(*next(iter(task.train_batches(5000, epoch=0, seed=0))), shuffle=True)
    evaluation = loader(*next(iter(task.eval_batches(1000))), shuffle=False)
    with tempfile.TemporaryDirectory() as folder:
        sparsity = NMCallback(nm.LBC("2:4"), rules={"model.5": "1:4"})
        best = ModelCheckpoint(folder, monitor="accuracy", mode="max")
        trainer = pl.Trainer(max_epochs=EPOCHS, accelerator="cpu", callbacks=[sparsity, best], logger=False)
        trainer.fit(Classifier(), train, evaluation)
        print(sparsity.sparsifier.plan)
        model = Classifier.load_from_checkpoint(best.best_model_path)  # saved after the masks were final
    print(f"best accuracy {best.best_model_score:.1%}")
    print(f"finished, {float((model.model[5].weight != 0).float().mean()):.2%} of the hidden layer kept")


if __name__ == "__main__":
    main()
