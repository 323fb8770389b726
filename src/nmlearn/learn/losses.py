"""What a model loses when one of its weights alone is pruned at once, for each weight and each pattern.

These are the losses whose sum an allocation of patterns makes least. Each is a squared error relative to what the dense
weight gives, so that those of several weights are of one unit, and add up as far as their errors are independent:

    "output"      of the outputs of the weight's own layer, on the inputs that calibration saw: ``tr(D G D^T)`` over
                  ``tr(W G W^T)`` with ``D`` the change of the weight and ``G = X^T X``
    "model"       of what the model returns for the batches, measured by running it with this weight pruned
    "magnitude"   of the weight itself: ``|D|^2 / |W|^2``, without data

With inputs the weight is pruned as by SparseGPT: training that follows lets the kept weights make up for others too.
Without, it is pruned by magnitude.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from nmlearn.errors import ConfigError, DataError
from nmlearn.learn import calibration
from nmlearn.learn.calibration import Seen
from nmlearn.learn.running import run
from nmlearn.maths import masks
from nmlearn.maths.groups import Grouping
from nmlearn.maths.importance import top_of_groups
from nmlearn.maths.inputs import Inputs, finite, from_rows, to_rows
from nmlearn.maths.obs import DAMPING, inverse_factor, sweep
from nmlearn.maths.reconstruction import share_lost
from nmlearn.model.example import quiet, tensors
from nmlearn.model.plan import PlanRow

Criterion = Literal["output", "model", "magnitude"]
Choices = Mapping[str, Sequence[Grouping]]  # by the weight's name
Losses = dict[str, tuple[float, ...]]  # by the weight's name, one for each of its choices


@torch.no_grad()
def by_magnitude(rows: Iterable[PlanRow], choices: Choices) -> Losses:
    """The criterion "magnitude"."""
    found = {}
    for row in rows:
        rows_gok = _rows(row, 1, torch.float32)
        kept = (top_of_groups(rows_gok.abs(), grouping.pattern) for grouping in choices[row.name])
        found[row.name] = tuple(share_lost(rows_gok, masks.kept(rows_gok, ~keep_gok)) for keep_gok in kept)
    return found


@torch.no_grad()
def by_inputs(
    model: nn.Module,
    rows: Sequence[PlanRow],
    choices: Choices,
    criterion: Literal["output", "model"],
    *,
    batches: Sequence[Any] | None,
    seen: Seen | None,
    memory: int,
) -> Losses:
    """The criteria that look at inputs. The model is as before afterwards, bit for bit.

    Args:
        model: runs in evaluation mode.
        rows: the weights; their inputs can be seen, and are in ``seen`` where that is given.
        choices: the patterns of each.
        batches: what to run it on; may be None for "output" with ``seen``.
        seen: Gram matrices of their inputs. None: calibrated stage by stage, the model staying dense.
        memory: as for :func:`nmlearn.learn.calibration.calibrate`.

    Raises:
        ConfigError: as for ``calibrate``; or a model that returns no floating-point tensor.
        DataError: inputs or outputs that are not finite, or sums that are not those of the weight's inputs.
        PlanError: a weight that no batch reaches.
    """
    found: Losses = {}
    change = Outputs(model, batches or ()).change if criterion == "model" else None

    def solve(row: PlanRow, inputs: Inputs) -> None:
        found[row.name] = tuple(_losses(row, choices[row.name], inputs, change))

    if seen is None:
        calibration.by_stages(model, batches or (), rows, "gram", memory, solve)
    else:
        for row in rows:
            _check_sums(row, seen[row.name])
            with quiet(model):
                solve(row, seen[row.name])
    return found


def _losses(
    row: PlanRow, choices: Sequence[Grouping], inputs: Inputs, change: Callable[[], float] | None
) -> Iterator[float]:
    """The loss of each choice of one weight; ``change`` measures the model's outputs, None asks the layer's own."""
    gram_gkk = inputs.gram_gkk
    assert gram_gkk is not None
    rows_gok = _rows(row, len(gram_gkk), gram_gkk.dtype)
    gram_gkk = gram_gkk.to(rows_gok.dtype)
    with torch.autocast(rows_gok.device.type, enabled=False):  # a solver wants all the digits it has
        factor_gkk = inverse_factor(gram_gkk, DAMPING, row.name)
    for grouping in choices:
        with torch.autocast(rows_gok.device.type, enabled=False):
            _, pruned_gok = sweep(rows_gok, factor_gkk, grouping.pattern)
        if change is None:
            yield share_lost(rows_gok, pruned_gok - rows_gok, gram_gkk)
            continue
        with _in_place_of(row.parameter, from_rows(pruned_gok, grouping, row.shape)):
            yield change()


def _rows(row: PlanRow, groups: int, dtype: torch.dtype) -> Tensor:
    """The finite rows ``[G, O, K]`` of a weight, in this type or its own wider one."""
    rows_gok = to_rows(row.parameter.detach(), row.grouping, groups)
    return rows_gok.to(torch.promote_types(dtype, rows_gok.dtype)).nan_to_num(0.0, 0.0, 0.0)


@contextmanager
def _in_place_of(parameter: nn.Parameter, values: Tensor) -> Iterator[None]:
    """Other values in a parameter inside the context."""
    before = parameter.detach().clone(memory_format=torch.preserve_format)
    try:
        parameter.copy_(values)
        yield
    finally:
        parameter.copy_(before)


class Outputs:
    """What a dense model returns for batches, to compare with what it returns later.

    Raises:
        ConfigError: no batch, one that the model refuses, or no floating-point tensor in its output.
        DataError: outputs that are zero or not finite.
    """

    def __init__(self, model: nn.Module, batches: Iterable[Any]) -> None:
        self.model, self.batches = model, calibration.listed(batches)
        with quiet(model):
            self.dense = [self._of(batch) for batch in self.batches]
        self.square = sum(float(tensor.double().square().sum()) for some in self.dense for tensor in some)
        if not 0 < self.square < math.inf:
            given, fix = f"{len(self.batches)} batches", 'give others, or the criterion "output"'
            wrong = f"the squares of the dense model's outputs on them sum to {self.square}"
            raise DataError(where="batches", given=given, wrong=wrong, fix=fix)

    def change(self) -> float:
        """The squared error of all outputs, over the sum of their squares; called while the model is ``quiet``."""
        over = 0.0
        for batch, dense in zip(self.batches, self.dense, strict=True):
            for now, then in zip(self._of(batch), dense, strict=True):
                over += float((now.double() - then.double()).square().sum())
        return over / self.square

    def _of(self, batch: Any) -> list[Tensor]:
        found = [tensor for tensor in tensors(run(self.model, batch)) if tensor.is_floating_point()]
        if not found:
            wrong, fix = "its output has no floating-point tensor to compare", 'give the criterion "output"'
            raise ConfigError(where="criterion", given='"model"', wrong=wrong, fix=fix)
        return found


def _check_sums(row: PlanRow, inputs: Inputs) -> None:
    wrong = ""
    if inputs.gram_gkk is None:
        wrong = "it has no Gram matrices"
    elif not finite(inputs):
        wrong = "its sums are not finite"
    elif row.parameter.numel() // row.shape[1 - row.grouping.axis] != inputs.gram_gkk.shape[-1]:
        wrong = f"its inputs are not those of a weight of shape {list(row.shape)}"
    if wrong:
        fix = 'calibrate this model: nm.calibrate(model, batches, "gram")'
        raise DataError(where=row.name, given="seen", wrong=wrong, fix=fix)
