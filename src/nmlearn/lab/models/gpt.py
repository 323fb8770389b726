"""A small language model in the style of GPT-2 (Radford et al. 2019): learned positions, pre-norm causal blocks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nmlearn.errors import ConfigError
from nmlearn.lab.models.transformer import Block, initialise


class GPT(nn.Module):
    """Token and position embedding, causal blocks, norm, and a head that predicts the next token.

    Args:
        vocabulary: number of token ids.
        length: maximum input length.
        tied: whether the head shares the embedding's weight.
    """

    def __init__(self, vocabulary: int, length: int, *, dim: int, depth: int, heads: int, tied: bool) -> None:
        super().__init__()
        self.tok_embed = nn.Embedding(vocabulary, dim)
        self.pos_embed = nn.Embedding(length, dim)
        self.blocks = nn.Sequential(*(Block(dim, heads, causal=True) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, vocabulary, bias=False)
        self.apply(initialise)
        # GPT-2, section 2.3: the outputs of two branches per block accumulate over the depth.
        for name, weight in self.blocks.named_parameters():
            if name.endswith(("attn.proj.weight", "mlp.fc2.weight")):
                nn.init.normal_(weight, std=0.02 / (2 * depth) ** 0.5)
        if tied:
            self.head.weight = self.tok_embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """int64 [b, T] -> logits [b, T, vocabulary]."""
        length, longest = tokens.shape[1], self.pos_embed.num_embeddings
        if length > longest:
            fix = f"give at most {longest} tokens"
            raise ConfigError(where="model.input_shape", given=length, wrong="more tokens than positions", fix=fix)
        x = self.tok_embed(tokens) + self.pos_embed(torch.arange(length, device=tokens.device))
        return self.head(self.norm(self.blocks(x)))


def small_gpt(
    classes: int,
    input_shape: tuple[int, ...],
    *,
    dim: int = 128,
    depth: int = 4,
    heads: int = 4,
    tied: bool = False,
) -> GPT:
    """`classes` is the vocabulary size and input_shape[0] the maximum input length."""
    return GPT(classes, input_shape[0], dim=dim, depth=depth, heads=heads, tied=tied)
