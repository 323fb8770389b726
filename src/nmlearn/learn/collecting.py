"""Collecting the inputs of layers: hooks that add up what each weight is multiplied with.

The inputs of a layer are seen as ``[*tokens, G, *K]``: tokens, convolution groups, and what a row of the weight runs
over, kernel positions first and channels last. That is the order of :func:`nmlearn.maths.inputs.to_rows`, so that rows
times inputs are the layer's outputs before its bias. For convolutions it is a view of the padded input, of which pieces
of a bounded size are copied.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nmlearn.learn import attention
from nmlearn.maths.inputs import Inputs
from nmlearn.model import trial
from nmlearn.model.plan import PlanRow

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
_FOREIGN_LINEAR = "transformers.pytorch_utils.Conv1D"  # a linear layer whose weight is [in, out]
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)

_UNSEEN = "its inputs cannot be seen by hooks"
_READ_INSIDE = f"{_UNSEEN}: its module multiplies with it in its own code"
_NEVER_CALLED = "no batch called its layer: it is not used, or its parent multiplies with the weight in its own code"
_MIXED = "its attention was given other keys or values than queries, and one weight multiplies them all"


@dataclass(frozen=True)
class Layer:
    """A weight whose inputs can be seen.

    Attributes:
        row: of the plan.
        owners: the modules whose calls give it its inputs; several where it is tied, and their inputs are added up.
        own: its name in attention; empty in other layers.
        groups: G, convolution groups.
        inputs: K, the inputs of one output.
    """

    row: PlanRow
    owners: tuple[nn.Module, ...]
    groups: int
    inputs: int
    own: str = ""

    @property
    def name(self) -> str:
        return self.row.name

    def input_of(self, owner: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
        """What a call of an owner multiplies with it; None where that is nothing, or cannot be said."""
        if isinstance(owner, nn.MultiheadAttention):
            x = attention.input_of(owner, self.own, args, kwargs)
        else:
            x = args[0] if args else next(iter(kwargs.values()), None)
        return x if isinstance(x, Tensor) and x.numel() else None

    def unreached(self) -> str:
        """Why no batch may have given it an input."""
        return _MIXED if self.own == "in_proj_weight" else _NEVER_CALLED

    def bytes(self, gram: bool) -> int:
        """What the sums over its inputs take."""
        values = self.groups * self.inputs * (2 + self.inputs * gram)
        return values * sums_dtype(self.row.parameter.dtype).itemsize


def layer(row: PlanRow, owners: tuple[nn.Module, ...], attentions: Mapping[int, nn.MultiheadAttention]) -> Layer | str:
    """A weight as one whose inputs can be seen, or why they cannot.

    Args:
        owners: the modules that have it.
        attentions: the attention of each output projection of one, by the projection's id.
    """
    if not owners:
        return "the model does not have it: the plan is of another model, or a weight was replaced"
    own = [_name_in_attention(owner, row, attentions) for owner in owners]
    owners = tuple(attentions.get(id(owner), owner) for owner in owners)
    reason = next(filter(None, (_unseeable(owner, row) for owner in owners)), "")
    if not reason and len(set(own)) > 1:
        reason = f"{_UNSEEN}: it is tied in layers of different kinds"
    if reason:
        return reason
    groups = {owner.groups if isinstance(owner, Convolution) else 1 for owner in owners}
    if len(groups) > 1:
        return f"{_UNSEEN}: it is tied in convolutions of different groups"
    shape, axis = row.shape, row.grouping.axis
    return Layer(row, owners, groups.pop(), math.prod(shape) // shape[1 - axis], own[0])


def _name_in_attention(owner: nn.Module, row: PlanRow, attentions: Mapping[int, nn.MultiheadAttention]) -> str:
    if id(owner) in attentions:
        return attention.OUTPUT
    if isinstance(owner, nn.MultiheadAttention):
        return next((own for own, p in owner.named_parameters(recurse=False) if p is row.parameter), "")
    return ""


def _unseeable(owner: nn.Module, row: PlanRow) -> str:
    """Why no hook on this module sees what the weight is multiplied with; empty when one does."""
    kind, inputs = type(owner), 1
    if isinstance(owner, nn.RNNBase | nn.RNNCellBase):
        return _READ_INSIDE
    if isinstance(owner, _TRANSPOSED):
        return "the inputs of a transposed convolution's groups are not those of its outputs"
    if f"{kind.__module__}.{kind.__name__}" == _FOREIGN_LINEAR:
        inputs = 0
    elif isinstance(owner, nn.MultiheadAttention):
        if kind.forward is not nn.MultiheadAttention.forward:
            return f"{_READ_INSIDE} ({kind.__name__})"
    elif not isinstance(owner, nn.Linear | Convolution) or row.parameter is not owner.weight:
        return f"{_READ_INSIDE} ({kind.__name__})"
    if row.grouping.axis != inputs:
        return f"its rule groups it along axis {row.grouping.axis}, and its inputs run along axis {inputs}"
    if trial.has_own_forward(owner) and not trial.computes_as_its_class(owner):
        return f"{kind.__name__}.forward does something else with its input than the class that it derives from"
    return ""


# The inputs of one call


def rows_of(owner: nn.Module, x: Tensor, piece: int) -> Iterator[Tensor]:
    """The inputs of one call as views ``[*tokens, G, *K]``, some examples at a time.

    Args:
        owner: a linear layer or convolution.
        x: its input: ``[..., K]``, or ``[N, C, ...]`` with or without N.
        piece: how many values of the padded input to hold at once, as far as one example allows.
    """
    if not isinstance(owner, Convolution):
        yield (x[None] if x.dim() == 1 else x).unsqueeze(-2)
        return
    x = x[None] if x.dim() == len(owner.kernel_size) + 1 else x
    pads = _padding(owner)
    lengths = [length + left + right for length, (left, right) in zip(x.shape[2:], pads, strict=True)]
    examples = max(1, piece // max(1, x.shape[1] * math.prod(lengths)))
    for some in x.split(examples):
        yield _windows(owner, some, pads)


def _windows(conv: Convolution, x: Tensor, pads: list[tuple[int, int]]) -> Tensor:
    if any(map(any, pads)):
        mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
        x = F.pad(x, [side for pair in reversed(pads) for side in pair], mode)
    spatial = len(pads)
    for i, (taps, apart, step) in enumerate(zip(conv.kernel_size, conv.dilation, conv.stride, strict=True)):
        x = x.unfold(2 + i, apart * (taps - 1) + 1, step)[..., ::apart]
    x = x.unflatten(1, (conv.groups, -1))  # [N, G, C / G, *out, *kernel]
    out, kernel = range(3, 3 + spatial), range(3 + spatial, 3 + 2 * spatial)
    return x.permute(0, *out, 1, *kernel, 2)


def _padding(conv: Convolution) -> list[tuple[int, int]]:
    """What is put before and behind each spatial dimension."""
    if conv.padding == "valid":
        return [(0, 0)] * len(conv.kernel_size)
    if conv.padding == "same":
        totals = [apart * (taps - 1) for taps, apart in zip(conv.kernel_size, conv.dilation, strict=True)]
        return [(total // 2, total - total // 2) for total in totals]
    return [(int(length), int(length)) for length in conv.padding]


def token_mask(mask: Tensor | None, x: Tensor) -> Tensor | None:
    """Which tokens of a linear layer's input ``[B, T, ..., K]`` or ``[B T, K]`` count: bool ``[*tokens]``; None: all.

    Args:
        mask: the batch's attention mask ``[B, T]``, 0 where a token is only padding; other ranks are not looked at.
    """
    if mask is None or mask.dim() != 2:
        return None
    tokens = x.shape[:-1]
    if tokens[:2] == mask.shape:
        keep = (mask != 0).reshape(*mask.shape, *[1] * (len(tokens) - 2))
    elif tokens == (mask.numel(),):
        keep = (mask != 0).flatten()
    else:
        return None
    return keep.to(x.device).expand(tokens)


def pieces(rows: Tensor, keep: Tensor | None, tokens: int, most: int) -> Iterator[Tensor]:
    """Copies ``[G, T, K]`` of a view ``[*tokens, G, *K]``, each of at most so many values, or of one token.

    Args:
        keep: bool ``[*tokens]``: which to copy; None for all.
        tokens: how many dimensions count tokens.
    """
    axis = next((axis for axis in range(tokens) if rows.shape[axis] > 1), None)
    if rows.numel() > most and axis is not None:
        length = max(1, most * rows.shape[axis] // rows.numel())
        parts = rows.split(length, axis)
        masks = [None] * len(parts) if keep is None else keep.split(length, axis)
        for part, mask in zip(parts, masks, strict=True):
            yield from pieces(part, mask, tokens, most)
        return
    flat = rows.flatten(tokens + 1).flatten(0, tokens - 1) if keep is None else rows[keep].flatten(2)
    yield flat.transpose(0, 1)


# Adding up


def sums_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums over the inputs of weights of a dtype."""
    return torch.float64 if dtype == torch.float64 else torch.float32


class Sums:
    """The sums over one weight's inputs while batches pass; float32, or float64 for a weight of float64."""

    def __init__(self, of: Layer, gram: bool, piece: int) -> None:
        """``piece``: bytes of inputs to copy at once."""
        self.of, self.tokens = of, 0
        self.dtype, self.device = sums_dtype(of.row.parameter.dtype), of.row.parameter.device
        self._most = piece // self.dtype.itemsize
        # With a Gram matrix the squares are its diagonal.
        self._sum, self._square = (self.zeros(of.groups, of.inputs) for _ in range(2))
        self._gram = self.zeros(of.groups, of.inputs, of.inputs) if gram else None

    def zeros(self, *shape: int) -> Tensor:
        """A sum to begin with."""
        return torch.zeros(shape, dtype=self.dtype, device=self.device)

    def add(self, owner: nn.Module, x: Tensor, mask: Tensor | None) -> None:
        """Add the input of one call, on the device of the weight.

        Args:
            mask: the batch's attention mask ``[B, T]``, if it has one.
        """
        spatial = len(owner.kernel_size) if isinstance(owner, Convolution) else 0
        keep = None if spatial else token_mask(mask, x)
        for rows in rows_of(owner, x.detach(), self._most):
            for piece in pieces(rows, keep, rows.dim() - 2 - spatial, self._most):
                self._add(piece.to(self.device, self.dtype))

    def _add(self, x_gtk: Tensor) -> None:
        self.tokens += x_gtk.shape[1]
        self._sum += x_gtk.sum(1)
        if self._gram is None:
            self._square += torch.linalg.vector_norm(x_gtk, dim=1).square_()
        else:
            self._gram.baddbmm_(x_gtk.mT, x_gtk)  # in place, which autocast leaves alone

    def inputs(self) -> Inputs:
        """What was added up so far; shares memory."""
        square = self._square if self._gram is None else self._gram.diagonal(dim1=1, dim2=2).clone()
        return Inputs(self.tokens, self._sum, square, self._gram)


@dataclass
class Collector:
    """Hooks on layers, while a model runs.

    Attributes:
        sums: what to add to, by the name of the weight; layers that it lacks are only told of.
        mask: the attention mask of the batch that runs.
        called: is told the name of a weight before each call that gives it an input, after that was added.
    """

    sums: dict[str, Sums]
    called: Callable[[str], None]
    mask: Tensor | None = None
    _hooks: list[Any] = field(default_factory=list)

    def hang(self, layers: Collection[Layer]) -> list[Any]:
        """Hang hooks on all owners, behind those that are there. Returns them."""
        for one in layers:
            for owner in one.owners:
                hook = torch.compiler.disable(self._hook(one))
                self._hooks.append(owner.register_forward_pre_hook(hook, with_kwargs=True))
        return self._hooks

    def remove(self) -> None:
        """Take the hooks off."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def _hook(self, one: Layer) -> Callable[..., None]:
        def hook(owner: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = one.input_of(owner, args, kwargs)
            if x is None:
                return
            if one.name in self.sums:
                self.sums[one.name].add(owner, x, self.mask)
            self.called(one.name)

        return hook
