"""What finalize verifies: the weights that the model has by then."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import nmlearn as nm
from nets import batches, convnet, sgd, train
from nmlearn.errors import AttachError, ViolationError

STEPS = 8


def trained(steps: int = STEPS, total: int = STEPS) -> tuple[Any, Any, nm.Sparsifier]:
    model = convnet()
    optimizer = sgd(model)
    sparsifier = nm.Sparsifier(model, nm.LBC("2:4")).attach(optimizer, total)
    train(model, optimizer, batches(steps))
    return model, optimizer, sparsifier


def load(model: Any) -> None:
    model.load_state_dict(convnet(seed=1).state_dict(), assign=True)


def another_layer(model: Any) -> None:
    model.hidden = nn.Linear(32, 32)


def another_weight(model: Any) -> None:
    model.hidden.weight = nn.Parameter(torch.randn(32, 32))


@pytest.mark.parametrize("replace", [load, another_layer, another_weight])
def test_finalize_verifies_what_the_model_has_now(replace: Callable[[Any], None]) -> None:
    model, _, sparsifier = trained()
    replace(model)
    with pytest.raises(ViolationError, match=r"(?s)hidden\.weight .* groups break 2:4.*another parameter") as caught:
        sparsifier.finalize()
    assert caught.value.where in ("conv.weight", "hidden.weight")
    assert sparsifier.masks()


def test_a_sparse_model_that_was_loaded_in_place_of_the_parameters_is_verified() -> None:
    model, _, sparsifier = trained()
    model.load_state_dict({name: value.clone() for name, value in model.state_dict().items()}, assign=True)
    sparsifier.finalize()


@pytest.mark.parametrize("layer", [nn.Identity(), nn.Linear(36, 32)])
def test_a_weight_that_is_gone_or_of_another_shape_is_named(layer: nn.Module) -> None:
    model, _, sparsifier = trained()
    model.hidden = layer
    with pytest.raises(ViolationError, match="replaced after the sparsifier was made") as caught:
        sparsifier.finalize()
    assert caught.value.where == "hidden.weight"


@pytest.mark.parametrize("replace", [another_layer, another_weight])
def test_one_replaced_weight_is_noticed_at_the_next_step(replace: Callable[[Any], None]) -> None:
    model, optimizer, _ = trained(2)
    replace(model)
    with pytest.raises(AttachError, match="in 1 places") as caught:
        train(model, optimizer, batches(1))
    assert caught.value.where == "hidden.weight"


def test_an_average_is_finished_although_the_model_itself_is_gone() -> None:
    model, _, sparsifier = trained()
    sparsifier.finalize()
    average = convnet(seed=1)
    model.hidden = nn.Identity()
    assert sparsifier.finalize(average).density == 0.5
