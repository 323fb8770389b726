"""Noise that is the same on every rank, device and run: it depends on a seed, a step and a name alone."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def uniform(shape: tuple[int, ...], seed: int, step: int, name: str) -> Tensor:
    """Uniform numbers in (0, 1) for a whole tensor: float32 on the CPU; ranks cut their shards out of it."""
    word = hashlib.sha256(f"{seed} {step} {name}".encode()).digest()
    generator = torch.Generator("cpu").manual_seed(int.from_bytes(word[:8], "little", signed=True))
    uniform = torch.rand(shape, generator=generator, dtype=torch.float32, device="cpu")
    return uniform.clamp_(1e-7, 1 - 1e-7)


def gumbel(shape: tuple[int, ...], seed: int, step: int, name: str) -> Tensor:
    """Standard Gumbel noise, -log(-log(u)): the largest of ``logits + noise`` is a draw from their softmax."""
    return uniform(shape, seed, step, name).log_().neg_().log_().neg_()


def normal(shape: tuple[int, ...], seed: int, step: int, name: str) -> Tensor:
    """Standard normal numbers, by the inverse of their distribution."""
    numbers: Tensor = torch.special.ndtri(uniform(shape, seed, step, name))
    return numbers
