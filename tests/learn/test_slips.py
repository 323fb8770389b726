"""Slips of the hand: what is refused, what is warned of, and what the messages say."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

import nmlearn as nm
from nets import convnet, sgd
from nmlearn.errors import AttachError, ConfigError

STEPS = 8


def attached(total: Any = STEPS) -> tuple[Any, Any, nm.Sparsifier]:
    model = convnet()
    optimizer = sgd(model)
    return model, optimizer, nm.Sparsifier(model, nm.LBC("2:4")).attach(optimizer, total)


@pytest.mark.parametrize(
    ("method", "write"),
    [("2:4", 'nm.LBC("2:4")'), (nm.Pattern("1:4"), 'nm.LBC("1:4")'), (nm.SRSTE, 'SRSTE("2:4")'), (None, "nm.LBC")],
)
def test_what_is_no_method_is_refused_with_what_to_write(method: Any, write: str) -> None:
    with pytest.raises(ConfigError) as caught:
        nm.Sparsifier(convnet(), method)
    assert write in caught.value.fix and caught.value.where == "Sparsifier(method=...)"


@pytest.mark.parametrize("total", [math.nan, math.inf, -math.inf, 0, -3, 0.5, 10.5, True, "10", None])
def test_the_number_of_steps_is_whole_and_at_least_one(total: Any) -> None:
    with pytest.raises(AttachError, match=f"total_steps={total!r}"):
        attached(total)


@pytest.mark.parametrize("total", [8.0, Fraction(8), np.int64(8)])
def test_numbers_that_equal_a_whole_one_are_taken_as_it(total: Any) -> None:
    _, _, sparsifier = attached(total)
    assert sparsifier.total_steps == 8 and type(sparsifier.total_steps) is int


def test_swapped_arguments_are_said_to_be_so() -> None:
    model = convnet()
    with pytest.raises(AttachError, match=r"other way round; write attach\(optimizer, total_steps\)"):
        nm.Sparsifier(model, nm.LBC("2:4")).attach(STEPS, sgd(model))  # type: ignore[arg-type]


@pytest.mark.parametrize("optimizer", [None, "sgd", torch.optim.SGD])
def test_what_is_no_optimizer_is_refused(optimizer: Any) -> None:
    with pytest.raises(AttachError, match="it is no torch optimizer"):
        nm.Sparsifier(convnet(), nm.LBC("2:4")).attach(optimizer, STEPS)
