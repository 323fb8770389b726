"""LBC in a plain PyTorch loop: sparsity adds only the lines with `sparsifier`.

python examples/plain_loop.py            # about a minute on one core
"""

import sys

import torch
import torch.nn.functional as F
from torch import nn

import nmlearn as nm
from nmlearn.lab import data

EPOCHS = int(sys.argv[1]) if len(sys.argv) > 1 else 3


class Net(nn.Module):
    """An ordinary network; nothing in it knows about sparsity."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 32, 3, stride=2, padding=1)
        self.conv = nn.Conv2d(32, 64, 3, stride=2, padding=1)
        self.hidden = nn.Linear(64 * 7 * 7, 128)
        self.head = nn.Linear(128, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.conv(F.relu(self.stem(x))))
        return self.head(F.relu(self.hidden(x.flatten(1))))


def main() -> None:
    torch.manual_seed(0)
    task = data.load("fashion-mnist", augment="flip")
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    steps = EPOCHS * (task.train_size // 128)

    sparsifier = nm.Sparsifier(model, nm.LBC("2:4"), rules={"hidden": "1:16"})
    sparsifier.attach(optimizer, steps)
    print(sparsifier.plan)
    for epoch in range(EPOCHS):
        for x, y in task.train_batches(128, epoch=epoch, seed=0):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
        print(f"epoch {epoch + 1}: {accuracy(model, task):.1%}, progress {sparsifier.progress:.0%}")
    sparsifier.finalize()
    print(f"finished, {float((model.hidden.weight != 0).float().mean()):.2%} of the hidden layer kept")


@torch.no_grad()
def accuracy(model: nn.Module, task: data.Task) -> float:
    right = sum(int((model(x).argmax(1) == y).sum()) for x, y in task.eval_batches(500))
    return right / task.eval_size


if __name__ == "__main__":
    main()
