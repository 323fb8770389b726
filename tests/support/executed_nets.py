"""Networks whose order of registration does not say what they begin and end with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import nmlearn as nm
from nets import convnet

WIDTH = 8


def image(channels: int = 3, size: int = 8) -> Tensor:
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(0))


def conv(inputs: int = WIDTH, outputs: int = WIDTH, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, **options)


class UNet(nn.Module):
    """The output is registered before what the decoder ends with, and the first convolution after all others."""

    def __init__(self) -> None:
        super().__init__()
        self.out = conv(WIDTH, 3)
        self.down, self.up = conv(WIDTH, 16, stride=2), nn.ConvTranspose2d(16, WIDTH, 2, 2)
        self.join, self.time, self.into = conv(16), nn.Linear(4, 16), conv(3)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        skip = F.silu(self.into(x))
        low = F.silu(self.down(skip)) + self.time(t)[:, :, None, None]
        return self.out(F.silu(self.join(torch.cat([self.up(low), skip], 1))))


class Segmentation(nn.Module):
    """A fully convolutional network with an auxiliary head on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.aux = nn.Sequential(conv(), nn.ReLU(), nn.Conv2d(WIDTH, 5, 1))
        self.main = nn.Sequential(conv(), nn.BatchNorm2d(WIDTH), nn.ReLU(), nn.Conv2d(WIDTH, 5, 1))
        self.stem, self.deep = conv(3, stride=2), conv(stride=2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        early = F.relu(self.stem(x))
        found = {"out": self.main(F.relu(self.deep(early))), "aux": self.aux(early)}
        return {name: F.interpolate(logits, x.shape[2:], mode="bilinear") for name, logits in found.items()}


class Generator(nn.Module):
    """Of a GAN; a statistic of the image is registered last."""

    def __init__(self) -> None:
        super().__init__()
        self.latent = nn.Linear(16, WIDTH * 16)
        self.pixels = nn.ConvTranspose2d(WIDTH, 3, 4, 2, 1)
        self.up, self.norm = nn.ConvTranspose2d(WIDTH, WIDTH, 4, 2, 1), nn.BatchNorm2d(WIDTH)
        self.refine = conv()

    def forward(self, z: Tensor) -> Tensor:
        x = self.latent(z).unflatten(1, (WIDTH, 4, 4))
        return self.pixels(self.refine(F.relu(self.norm(self.up(x))))).tanh()


class SuperResolution(nn.Module):
    """Residual blocks, then pixels moved out of channels; the enlarged input is added to them."""

    def __init__(self) -> None:
        super().__init__()
        self.tail, self.shuffle = conv(WIDTH, 12), nn.PixelShuffle(2)
        self.head = conv(3)  # what EDSR calls its first convolution
        self.body = nn.ModuleList(nn.Sequential(conv(), nn.ReLU(inplace=True), conv()) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        y = start = self.head(x)
        for block in self.body:
            y = y + block(y)
        return self.shuffle(self.tail(y + start)) + F.interpolate(x, scale_factor=2)


class AllConvolutional(nn.Module):
    """Classes are the means of a convolution's maps."""

    def __init__(self) -> None:
        super().__init__()
        self.classes, self.squeeze = nn.Conv2d(WIDTH, 5, 1), nn.Linear(WIDTH, WIDTH)
        self.body = nn.Sequential(conv(3), nn.ReLU(), conv(), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        return self.classes(x * self.squeeze(x.mean((2, 3))).sigmoid()[:, :, None, None]).mean((2, 3))


class Detector(nn.Module):
    """Shared heads on two levels; boxes are decoded and chosen by score."""

    def __init__(self) -> None:
        super().__init__()
        self.boxes, self.scores, self.tower = nn.Conv2d(WIDTH, 4, 1), nn.Conv2d(WIDTH, 2, 1), conv()
        self.levels = nn.ModuleList([conv(3, stride=2), conv(stride=2)])

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        x, maps = torch.stack(images), []
        for level in self.levels:
            x = F.relu(level(x))
            y = F.relu(self.tower(x))
            maps.append(torch.cat([self.boxes(y), self.scores(y)], 1).flatten(2))
        return [self._chosen(each.T) for each in torch.cat(maps, 2)]

    def _chosen(self, each: Tensor) -> dict[str, Tensor]:
        boxes, (scores, labels) = each[:, :4].exp(), each[:, 4:].softmax(1).max(1)
        kept = scores.topk(3).indices
        return {"boxes": boxes[kept], "scores": scores[kept], "labels": labels[kept]}


class Proposing(nn.Module):
    """A detector in two stages: boxes are proposed, chosen by score and detached; a second stage looks at them."""

    def __init__(self) -> None:
        super().__init__()
        self.box_head, self.cls_score, self.bbox_pred = nn.Linear(4, WIDTH), nn.Linear(WIDTH, 3), nn.Linear(WIDTH, 4)
        self.objectness, self.deltas, self.body = nn.Linear(WIDTH, 1), nn.Linear(WIDTH, 4), nn.Linear(6, WIDTH)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu(self.body(x))
        proposals = self.deltas(x).detach()[:, :4].sigmoid()
        proposals = proposals[self.objectness(x)[:, 0].topk(2).indices]
        x = F.relu(self.box_head(proposals))
        return self.cls_score(x), proposals + self.bbox_pred(x)


class Language(nn.Module):
    """Tokens to logits, with a head of its own, tied as a layer, or tied in the code alone."""

    def __init__(self, tied: str = "") -> None:
        super().__init__()
        self.head = nn.Linear(WIDTH, 16, bias=False)
        self.table, self.transform = nn.Embedding(16, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(WIDTH, 2, 16, batch_first=True) for _ in range(2))
        self.tied = tied
        if tied == "layer":
            self.head.weight = self.table.weight

    def forward(self, ids: Tensor, labels: Tensor | None = None, states: bool = False) -> dict[str, Any]:
        every = [self.table(ids)]
        for block in self.blocks:
            every.append(block(every[-1]))
        x = F.gelu(self.transform(every[-1]))
        logits = F.linear(x, self.table.weight) if self.tied == "code" else self.head(x)
        found: dict[str, Any] = {"states": every} if states else {}
        if labels is None:
            return found | {"logits": logits}
        return found | {"loss": F.cross_entropy(logits.flatten(0, 1), labels.flatten())}


@dataclass
class Pooled:
    states: Tensor
    pooled: Tensor


class Pooling(nn.Module):
    """BERT's encoder: every token's state, and the first one's through another layer."""

    def __init__(self, pools: bool = True) -> None:
        super().__init__()
        self.pooler = nn.Linear(WIDTH, WIDTH) if pools else None
        self.table, self.encoder = nn.Embedding(16, WIDTH), encoder()

    def forward(self, ids: Tensor) -> Any:
        states = self.encoder(self.table(ids))
        return Pooled(states, self.pooler(states[:, 0]).tanh()) if self.pooler is not None else (states,)


def encoder() -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 16, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


class TwoHeads(nn.Module):
    """A policy and a value; both are one layer in a block of the same form."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 4)) for _ in "ab")
        self.body = nn.Linear(6, WIDTH)

    def forward(self, x: Tensor) -> tuple[torch.distributions.Normal, Tensor]:
        policy, value = (head(torch.relu(self.body(x))) for head in self.heads)
        return torch.distributions.Normal(policy, 1.0), value


class Forecast(nn.Module):
    """Its own output is its next input."""

    def __init__(self) -> None:
        super().__init__()
        self.out, self.cell, self.into = nn.Linear(WIDTH, 4), nn.LSTMCell(WIDTH, WIDTH), nn.Linear(4, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        state, steps = (x.new_zeros(len(x), WIDTH), x.new_zeros(len(x), WIDTH)), x.new_zeros(3, len(x), 4)
        for step in range(3):
            state = self.cell(F.relu(self.into(x)), state)
            x = self.out(state[0])
            steps[step] = x  # a write through a view
        return steps


class Routed(nn.Module):
    """A gate of two outputs picks an expert: only a choice of it reaches the output."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.gate = nn.Linear(WIDTH, 4), nn.Linear(6, 2)
        self.experts = nn.ModuleList(nn.Linear(6, WIDTH) for _ in "ab")

    def forward(self, x: Tensor) -> Tensor:
        chosen = self.gate(x).argmax(1, keepdim=True)
        return self.head(torch.where(chosen == 0, self.experts[0](x), self.experts[1](x)).relu())


def planned(kind: str) -> dict[str, str]:
    """A rank's reasons for dense weights, planned on a sharded model, which then trains a step."""
    model = convnet()
    if kind == "fsdp":
        fully_shard(model.conv)
        fully_shard(model)
    if kind == "tensor":
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        parallelize_module(model, mesh, {"hidden": ColwiseParallel(), "head": RowwiseParallel()})
    model = nn.parallel.DistributedDataParallel(model) if kind == "ddp" else model
    before = [id(p) for p in model.parameters()]
    plan = nm.Sparsifier(model, nm.LBC("2:4"), example=image() + dist.get_rank()).plan
    assert [id(p) for p in model.parameters()] == before
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model(image()).sum().backward()
    optimizer.step()
    return {row.name: row.reason for row in plan.rows if row.pattern is None}
