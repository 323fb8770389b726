"""Models and a method for the tests of calibration."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nmlearn.maths.inputs import Inputs, from_rows, to_rows
from nmlearn.methods.method import Method, State, Weight, keep_top_


@dataclass(frozen=True)
class ByInputs(Method):
    """A stub: the largest ``|w| norm(x)`` of each group stay. It notes what it is given."""

    name: ClassVar[str] = "by-inputs"
    needs: ClassVar[Literal["gram"]] = "gram"
    noted: ClassVar[dict[str, Inputs | None]] = {}

    def init(self, w: Weight) -> State:
        self.noted[w.name] = w.inputs
        state = super().init(w)
        row = w.tensor[:1]
        assert w.inputs is not None and (row @ row.mT).dtype == row.dtype, "a product under autocast"
        scores_gok = to_rows(w.tensor.abs(), w.grouping, len(w.inputs.norm_gk)) * w.inputs.norm_gk[:, None]
        scores = from_rows(scores_gok, w.grouping, tuple(w.tensor.shape))
        keep_top_(replace(w, state=state), scores, w.pattern.n)
        return state


@dataclass(frozen=True)
class Forgets(ByInputs):
    """The stub without its notes, which hold all Gram matrices."""

    def init(self, w: Weight) -> State:
        try:
            return super().init(w)
        finally:
            self.noted.clear()


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def chain(*sizes: int) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(part for pair in itertools.pairwise(sizes) for part in (nn.Linear(*pair), nn.ReLU())))


class Block(nn.Module):
    """Attention of one head in plain layers, as language models have it."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        bias = None if mask is None else torch.where(mask[:, None] != 0, 0.0, -torch.inf)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, bias))
        return x + self.down(F.gelu(self.up(self.norm(x))))


class Language(nn.Module):
    def __init__(self, width: int = 16, hidden: int = 32, depth: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(32, width)
        self.layers = nn.ModuleList(Block(width, hidden) for _ in range(depth))
        self.head = nn.Linear(width, 32)

    def forward(self, tokens: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x, attention_mask)
        return self.head(x)


def tokens(batch: int = 2, length: int = 6, seed: int = 0) -> Tensor:
    return torch.randint(32, (batch, length), generator=torch.Generator().manual_seed(seed))


class Attends(nn.Sequential):
    """Attention, and an output layer."""

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__(attention, nn.Linear(attention.embed_dim, 4))

    def forward(self, x: Tensor, y: Tensor, padded: Tensor | None = None) -> Tensor:
        return self[1](self[0](x, key=y, value=y, key_padding_mask=padded)[0])


class Readers(nn.Module):
    """Layers whose weights are read by others, or never."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.cross = nn.MultiheadAttention(16, 2, batch_first=True)
        self.rnn, self.up = nn.LSTM(16, 16, batch_first=True), nn.ConvTranspose1d(16, 16, 2)
        self.read, self.unused = nn.Linear(16, 16), nn.Linear(16, 16)
        self.own = Doubled(16, 16)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.cross(x, 2 * x, x)[0]
        x = self.up(self.rnn(self.encoder(x))[0].mT).mT
        return self.head(self.own(F.linear(x, self.read.weight)))


class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(2 * x)


class Logged(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)
