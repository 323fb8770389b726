"""Numbers of a few bits each, one after the other, the lowest bit first: bit i is bit i % 8 of byte i // 8."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def write(numbers: Tensor, width: int) -> Tensor:
    """Pack numbers into a stream.

    Args:
        numbers: int64 ``[count]`` in [0, 2^width).
        width: bits of each, 0 to 63.

    Returns:
        uint8 ``[ceil(count * width / 8)]``; the last byte is filled with zero bits.
    """
    octets = numbers.numpy().astype("<i8").view(np.uint8).reshape(-1, 8)
    bits = np.unpackbits(octets, axis=1, count=width, bitorder="little")
    return torch.from_numpy(np.packbits(bits.ravel(), bitorder="little"))


def read(stream: Tensor, width: int, count: int) -> Tensor:
    """The inverse of :func:`write`.

    Args:
        stream: uint8 ``[ceil(count * width / 8)]``.

    Returns:
        int64 ``[count]``.
    """
    bits = np.unpackbits(stream.numpy(), count=count * width, bitorder="little").reshape(count, width)
    octets = np.zeros((count, 8), np.uint8)
    octets[:, : (width + 7) // 8] = np.packbits(bits, axis=1, bitorder="little")
    return torch.from_numpy(octets.view("<i8").reshape(count).astype(np.int64))
