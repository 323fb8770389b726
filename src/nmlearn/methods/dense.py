"""Dense training: the reference that every sparse result is compared with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from nmlearn.methods.method import Method, Weight


@dataclass(frozen=True)
class Dense(Method):
    """Masks nothing. The pattern only says which weights the comparison is about."""

    name: ClassVar[str] = "dense"
    holds: ClassVar[Literal["nothing"]] = "nothing"
    dense_gradient: ClassVar[bool] = True

    def mask(self, w: Weight) -> Tensor:
        return torch.ones_like(w.tensor, dtype=torch.bool)
