"""The base of one-shot methods that choose by what calibration saw of a weight's inputs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from nmlearn.errors import AttachError, DataError
from nmlearn.maths import masks
from nmlearn.maths.inputs import Inputs, finite, from_rows, to_rows
from nmlearn.maths.reconstruction import refit_pcg
from nmlearn.methods.method import Method, Needs, State, Weight
from nmlearn.methods.options import refuse


@dataclass(frozen=True)
class Calibrated(Method):
    """Base of methods that choose the mask once, from what calibration saw of the inputs, and perhaps new values.

    ``init`` solves a weight that comes with its inputs, and writes into it. Without inputs it takes the zeros that are
    there, as :class:`nmlearn.Keep` does: for training on, or resuming, after ``sparsifier.apply``.

    Attributes:
        refit: "pcg" then finds the kept weights whose outputs are closest to the dense ones, by least squares.
        refit_steps: of conjugate gradients, 10.

    Raises:
        ConfigError: another ``refit``, or no step.
    """

    refit: Literal["none", "pcg"] = field(default="none", kw_only=True)
    refit_steps: int = field(default=10, kw_only=True)

    sees: ClassVar[Needs] = "sums"
    """What :meth:`solve` needs."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.refit_steps < 1:
            refuse("refit_steps", self.refit_steps, "a refit takes at least one step", "write 10")

    @property
    def needs(self) -> Needs:
        return "gram" if self.refit == "pcg" else self.sees

    def init(self, w: Weight) -> State:
        """The mask; ``w.tensor`` gets zeros where it prunes, and the values of the method where it has some.

        Raises:
            AttachError: a weight that does not fit its pattern, and no calibration.
            DataError: inputs that are not finite, or too little was seen of them.
        """
        if w.inputs is None:
            return {masks.KEEP: masks.bits(zeros_that_fit(w))}
        inputs = self._checked(w, w.inputs)
        dtype = torch.promote_types(inputs.square_gk.dtype, w.tensor.dtype)
        dense_gok = to_rows(w.tensor, w.grouping, len(inputs.square_gk)).to(dtype).nan_to_num(0.0, 0.0, 0.0)
        seen = inputs.double() if dtype == torch.float64 else inputs
        keep_gok, rows_gok = self.solve(w, dense_gok, seen)
        if self.refit == "pcg":
            assert seen.gram_gkk is not None
            start = dense_gok if rows_gok is None else rows_gok
            rows_gok = refit_pcg(start, keep_gok, seen.gram_gkk, dense_gok, self.refit_steps)
        shape = tuple(w.tensor.shape)
        if rows_gok is not None:
            w.tensor.copy_(from_rows(rows_gok, w.grouping, shape))
        keep_w = masks.full_bits(w.tensor).copy_(masks.bits(from_rows(keep_gok, w.grouping, shape)))
        masks.clear_(w.tensor, keep_w)
        return {masks.KEEP: keep_w}

    def solve(self, w: Weight, rows_gok: Tensor, inputs: Inputs) -> tuple[Tensor, Tensor | None]:
        """What is kept, bool, and the values of the kept weights, None where they stay; both ``[G, O, K]``.

        Args:
            w: the weight, for its name and its pattern.
            rows_gok: its finite rows, float32 or float64, as are the inputs; to be left as they are.
            inputs: with a gram matrix if the method ``needs`` one.
        """
        raise NotImplementedError(f"{type(self).__name__} has to say what is kept")

    def describe(self) -> dict[str, Any]:
        settings = super().describe()
        if self.refit == "none":  # states of methods that had no refit yet say nothing of it
            del settings["refit"], settings["refit_steps"]
        return settings

    def _checked(self, w: Weight, inputs: Inputs) -> Inputs:
        """The inputs.

        Raises:
            DataError: they are not finite, or have no gram matrix and should.
        """
        wrong, fix = "", "calibrate with sparsifier.apply(batches), which sees what this method needs"
        if not finite(inputs):
            wrong, fix = "a sum over its inputs is not finite", "calibrate with finite batches, in float32"
        elif self.needs == "gram" and inputs.gram_gkk is None:
            wrong = f"{self.name} needs the products of its inputs, and calibration saw only their sums"
        if wrong:
            raise DataError(where=w.name, given=f"{inputs.tokens} inputs", wrong=wrong, fix=fix)
        return inputs


def zeros_that_fit(w: Weight) -> Tensor:
    """The mask that a weight's own zeros make: bool, of its shape.

    Raises:
        AttachError: a group keeps more than N.
    """
    mask_w = w.tensor != 0
    why = w.grouping.violation(mask_w)
    if why:
        raise AttachError(
            where=w.name,
            given=tuple(w.tensor.shape),
            wrong=f"{why}, and without calibration nothing can be chosen",
            fix="call sparsifier.apply(batches) first, or load weights that have the pattern",
        )
    return mask_w
