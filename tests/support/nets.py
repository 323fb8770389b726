"""Small networks and training loops that several tests share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import nmlearn as nm


class ConvNet(nn.Module):
    """Convolutions (one grouped), batch norm and linear layers; all taken inputs are multiples of 16."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.conv = nn.Conv2d(width, 2 * width, 3, bias=False)
        self.norm = nn.BatchNorm2d(2 * width)
        self.grouped = nn.Conv2d(2 * width, 2 * width, 3, groups=2)
        self.hidden = nn.Linear(2 * width, 2 * width)
        self.head = nn.Linear(2 * width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv(F.relu(self.stem(x)))))
        x = F.relu(self.grouped(x)).mean((2, 3))
        return self.head(F.relu(self.hidden(x)))


def batches(steps: int, shape: tuple[int, ...] = (3, 8, 8), size: int = 8, dtype: torch.dtype = torch.float32) -> list:
    """Random batches with labels in five classes, the same for the same arguments."""
    g = torch.Generator().manual_seed(1)
    return [
        (torch.randn(size, *shape, generator=g, dtype=dtype), torch.randint(5, (size,), generator=g))
        for _ in range(steps)
    ]


def convnet(seed: int = 0, **kwargs: int) -> ConvNet:
    torch.manual_seed(seed)
    return ConvNet(**kwargs)


def sgd(model: nn.Module, lr: float = 0.05) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr, momentum=0.9, weight_decay=1e-3)


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: list,
    after: Callable[[int], None] = lambda step: None,
) -> list[float]:
    """An ordinary training loop; returns the losses."""
    losses = []
    for step, (x, y) in enumerate(data):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x).float() if x.dtype == torch.bfloat16 else model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        after(step)
    return losses


def backward(model: nn.Module, optimizer: torch.optim.Optimizer, batch: Any) -> Tensor:
    """New gradients from a batch; the loss, as a closure returns it."""
    optimizer.zero_grad()
    loss = F.cross_entropy(model(batch[0]), batch[1])
    loss.backward()
    return loss


def learn(method: nm.Method, steps: int = 24, model: nn.Module | None = None, **kwargs: object) -> nm.Sparsifier:
    """Train a network under a method to the end, not finalized."""
    model = model or convnet()
    optimizer = sgd(model)
    sparsifier = nm.Sparsifier(model, method, **kwargs).attach(optimizer, steps)  # type: ignore[arg-type]
    train(model, optimizer, batches(steps))
    return sparsifier


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def same(a: Any, b: Any) -> bool:
    """Whether two states, dicts and lists of tensors and numbers, are equal bit for bit."""
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return torch.equal(a, b) if isinstance(a, Tensor) else a == b


class Versioned(nn.Linear):
    """A layer in its second version, which refuses states of the first, as torchvision's MNASNet does."""

    _version = 2

    def _load_from_state_dict(self, state: Any, prefix: str, metadata: dict[str, Any], *found: Any) -> None:
        if metadata.get("version") != 2:
            raise ValueError(f"version 2 is expected, not {metadata.get('version')}")
        super()._load_from_state_dict(state, prefix, metadata, *found)


class Layers(nn.Module):
    """The other layers that are taken: Conv1d, Conv3d, a transposed convolution, attention, a recurrent layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(3, 8, 3, padding=1)
        self.conv1 = nn.Conv1d(8, 16, 3, padding=1)
        self.up = nn.ConvTranspose1d(16, 8, 2)
        self.conv3 = nn.Conv3d(8, 8, (1, 1, 3), padding=(0, 0, 1))
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.rnn = nn.LSTM(8, 4, batch_first=True)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.up(F.relu(self.conv1(F.relu(self.stem(x))))))
        x = F.relu(self.conv3(x[:, :, None, None]))[:, :, 0, 0].transpose(1, 2)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.head(self.rnn(x)[0].mean(1))
