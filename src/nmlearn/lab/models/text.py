"""A small transformer encoder that classifies short texts."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nmlearn.lab.models.transformer import Block, initialise


class TextTransformer(nn.Module):
    """Token and position embedding, blocks, norm, the mean over all non-padding tokens, and a classifier.

    Token 0 is padding: nothing attends to it and the mean excludes it. A text that is all padding counts as one
    padding token.
    """

    def __init__(self, classes: int, length: int, *, vocabulary: int, dim: int, depth: int, heads: int) -> None:
        super().__init__()
        self.tok_embed = nn.Embedding(vocabulary, dim)
        self.pos_embed = nn.Embedding(length, dim)
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, classes)
        self.apply(initialise)

    def forward(self, tokens: Tensor) -> Tensor:
        """int64 [b, T] -> logits [b, classes]."""
        keep = tokens != 0
        keep = torch.cat((torch.ones_like(keep[:, :1]), keep[:, 1:]), dim=1)
        x = self.tok_embed(tokens) + self.pos_embed.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x, keep[:, None, None, :])
        share = keep.to(x.dtype)
        share = share / share.sum(1, keepdim=True)
        return self.head((self.norm(x) * share[:, :, None]).sum(1))


def text_transformer(
    classes: int,
    input_shape: tuple[int, ...],
    *,
    vocabulary: int = 8192,
    dim: int = 128,
    depth: int = 4,
    heads: int = 4,
) -> TextTransformer:
    """For texts of input_shape[0] token ids below `vocabulary` (the default is the "wordnet" data set's)."""
    return TextTransformer(classes, input_shape[0], vocabulary=vocabulary, dim=dim, depth=depth, heads=heads)
