"""Dense training: the reference that every sparse result is compared with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from nmlearn.maths.groups import Grouping
from nmlearn.methods.method import Batch, Method, State


@dataclass(frozen=True)
class Dense(Method):
    """Masks nothing. The pattern only says which weights the comparison is about."""

    name: ClassVar[str] = "dense"
    dense_gradient: ClassVar[bool] = True
    masks_weights: ClassVar[bool] = False

    def init(self, name: str, weight: Tensor, grouping: Grouping) -> State:
        return {}

    def use(self, batch: Batch) -> None:
        pass

    def mask(self, weight: Tensor, state: State) -> Tensor:
        return torch.ones_like(weight, dtype=torch.bool)
