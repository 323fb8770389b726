"""The pre-norm transformer block of the vision, language and text models (with timm's names)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from nmlearn.errors import ConfigError


class Attention(nn.Module):
    """Multi-head self-attention with one projection for query, key and value."""

    def __init__(self, dim: int, heads: int, *, causal: bool = False) -> None:
        super().__init__()
        if dim % heads:
            fix = f"use a dim that {heads} divides, or other heads"
            raise ConfigError(where="model.options.heads", given=heads, wrong=f"does not divide the dim {dim}", fix=fix)
        self.heads, self.causal = heads, causal
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """[b, T, dim] -> [b, T, dim]; `keep` bool [b, 1, 1, T] is False for tokens that must not be attended to."""
        batch, length, dim = x.shape
        query, key, value = self.qkv(x).view(batch, length, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        y = functional.scaled_dot_product_attention(query, key, value, attn_mask=keep, is_causal=self.causal)
        return self.proj(y.transpose(1, 2).reshape(batch, length, dim))


class Mlp(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """[..., dim] -> [..., dim]."""
        return self.fc2(functional.gelu(self.fc1(x)))


class DropPath(nn.Module):
    """Drops a residual branch for a fraction of the examples in training (Huang et al. 2016)."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        """[b, ...] -> [b, ...], scaled to preserve the expectation."""
        if not self.training or self.share == 0:
            return x
        kept = x.new_empty(x.shape[0], *[1] * (x.dim() - 1)).bernoulli_(1 - self.share)
        return x * kept / (1 - self.share)


class Block(nn.Module):
    """Attention and an MLP of four times the width, each applied to the normalised input and added to it."""

    def __init__(
        self, dim: int, heads: int, *, causal: bool = False, drop_path: float = 0.0, eps: float = 1e-5
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn = Attention(dim, heads, causal=causal)
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = Mlp(dim, 4 * dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """[b, T, dim] -> [b, T, dim]; `keep` as in `Attention`."""
        x = x + self.drop_path(self.attn(self.norm1(x), keep))
        return x + self.drop_path(self.mlp(self.norm2(x)))


def initialise(module: nn.Module) -> None:
    """Normal weights with standard deviation 0.02, truncated at two deviations as in ViT's recipe; zero biases."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.trunc_normal_(module.weight, std=0.02, a=-0.04, b=0.04)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
