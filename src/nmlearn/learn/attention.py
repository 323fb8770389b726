"""The inputs of the projections of ``nn.MultiheadAttention``, whose own code reads their weights without a call."""

from __future__ import annotations

import copy
import inspect
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

OUTPUT = "out_proj.weight"
_SIGNATURE = inspect.signature(nn.MultiheadAttention.forward)
_SEPARATE = {"q_proj_weight": "query", "k_proj_weight": "key", "v_proj_weight": "value"}


def input_of(attention: nn.MultiheadAttention, own: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What one of its weights is multiplied with in a call; None where its rows are multiplied with different things.

    Args:
        own: the weight's name in the module.
        args, kwargs: of the call.
    """
    given = _SIGNATURE.bind(attention, *args, **kwargs).arguments
    del given["self"]
    if own in _SEPARATE:
        return given[_SEPARATE[own]]
    if own == OUTPUT:
        return _attended(attention, given)
    return given["query"] if given["query"] is given["key"] is given["value"] else None


def _attended(attention: nn.MultiheadAttention, given: dict[str, Any]) -> Tensor:
    """What the output projection is given: the output of the same attention with the identity in its place."""
    twin, weight = copy.copy(attention), attention.out_proj.weight
    eye = torch.eye(len(weight), dtype=weight.dtype, device=weight.device)
    vars(twin)["out_proj"] = SimpleNamespace(weight=eye, bias=None)
    attended: Tensor = twin.forward(**(given | {"need_weights": False}))[0]
    return attended
