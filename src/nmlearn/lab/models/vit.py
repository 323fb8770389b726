"""Vision transformers (Dosovitskiy et al. 2021; DeiT: Touvron et al. 2021). Names in the state_dict are timm's."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nmlearn.errors import ConfigError
from nmlearn.lab.models.transformer import Block, initialise


class PatchEmbed(nn.Module):
    """Splits the image into patches, one token each, by a convolution whose stride equals its size."""

    def __init__(self, channels: int, patch: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, dim, patch, patch)

    def forward(self, x: Tensor) -> Tensor:
        """[b, channels, H, W] -> [b, (H / patch) (W / patch), dim]."""
        return self.proj(x).flatten(2).transpose(1, 2)


class VisionTransformer(nn.Module):
    """Patches and a class token, learned positions, blocks, norm, and a classifier on the class token.

    Args:
        input_shape: (C, H, W); `patch` divides H and W.
        drop_path: fraction of dropped branches in the last block; it grows linearly from 0 in the first.
    """

    def __init__(
        self,
        classes: int,
        input_shape: tuple[int, ...],
        *,
        patch: int,
        dim: int,
        depth: int,
        heads: int,
        drop_path: float,
    ) -> None:
        super().__init__()
        channels, height, width = input_shape
        if height % patch or width % patch:
            wrong = f"does not divide the image's {height} x {width}"
            fix = "set model.options.patch or data.options.image_size"
            raise ConfigError(where="model.options.patch", given=patch, wrong=wrong, fix=fix)
        tokens = (height // patch) * (width // patch)
        self.patch_embed = PatchEmbed(channels, patch, dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens + 1, dim))
        drops = [drop_path * number / max(1, depth - 1) for number in range(depth)]
        self.blocks = nn.Sequential(*(Block(dim, heads, drop_path=drop, eps=1e-6) for drop in drops))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, classes)
        self.apply(initialise)
        for positions in (self.cls_token, self.pos_embed):
            nn.init.trunc_normal_(positions, std=0.02, a=-0.04, b=0.04)

    def forward(self, x: Tensor) -> Tensor:
        """float32 [b, C, H, W] -> logits [b, classes]."""
        x = self.patch_embed(x)
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1) + self.pos_embed
        return self.head(self.norm(self.blocks(x))[:, 0])


def small_vit(
    classes: int,
    input_shape: tuple[int, ...],
    *,
    patch: int | None = None,
    dim: int = 192,
    depth: int = 4,
    heads: int = 3,
    drop_path: float = 0.0,
) -> VisionTransformer:
    """A small one. The default patch is 7 for 28 pixels, and an eighth of the height otherwise (4 at 32)."""
    height = input_shape[1]
    chosen = patch if patch is not None else height // 4 if height == 28 else max(1, height // 8)
    return VisionTransformer(classes, input_shape, patch=chosen, dim=dim, depth=depth, heads=heads, drop_path=drop_path)


def deit_small(
    classes: int, input_shape: tuple[int, ...], *, patch: int = 16, drop_path: float = 0.1
) -> VisionTransformer:
    """DeiT-small without the distillation token (Touvron et al. 2021, table 1): 384 wide, 12 deep, 6 heads."""
    return VisionTransformer(classes, input_shape, patch=patch, dim=384, depth=12, heads=6, drop_path=drop_path)
