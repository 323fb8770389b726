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


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), 1e-3)


def stopped(steps: int, total: int, earlier: int = 0, optimizer: Any = adam) -> str:
    """What finalize says after so many steps of so many, of an optimizer that has stepped before."""
    model = convnet()
    chosen = optimizer(model)
    train(model, chosen, batches(earlier))
    sparsifier = nm.Sparsifier(model, nm.LBC("2:4", end=1.0)).attach(chosen, total, resume="anew")
    train(model, chosen, batches(steps))
    with pytest.raises(ViolationError) as caught:
        sparsifier.finalize()
    assert sparsifier.masks() and "finalize(complete=True) makes the last removals now" in caught.value.fix
    return caught.value.fix


RESUMED, COUNTED, SKIPPED, WRITTEN = "resumed", "micro-batches", "scaler", "average copied in"


@pytest.mark.parametrize(
    ("given", "causes"),
    [
        ({"steps": 7, "total": 20}, set()),
        ({"steps": 7, "total": 20, "optimizer": sgd}, {RESUMED}),
        ({"steps": 7, "total": 20, "earlier": 3}, {RESUMED}),
        ({"steps": 5, "total": 20}, {COUNTED}),
        ({"steps": 19, "total": 20}, {SKIPPED}),
    ],
)
def test_only_causes_that_fit_are_named(given: dict[str, Any], causes: set[str]) -> None:
    said = stopped(**given)
    assert {cause for cause in (RESUMED, COUNTED, SKIPPED, WRITTEN) if cause in said} == causes
    assert f"step {given['steps']} of total_steps=20" in said


def test_the_optimizers_own_count_shows_a_resumed_training_run() -> None:
    assert "The optimizer has made 10 steps" in stopped(7, 20, earlier=3)


def test_a_checkpoint_of_the_beginning_is_recognized_in_mid_schedule() -> None:
    model, _, sparsifier = trained(30, 100)
    model.load_state_dict(convnet(seed=1).state_dict())
    with pytest.raises(ViolationError, match="3 weights have values where they were pruned: was a checkpoint"):
        sparsifier.finalize()


def test_steps_that_a_fused_optimizer_skips_for_its_scaler_are_counted() -> None:
    model = convnet()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, fused=True)
    sparsifier = nm.Sparsifier(model, nm.LBC("2:4", end=1.0)).attach(optimizer, 20)
    train(model, optimizer, batches(3))
    optimizer.found_inf = torch.ones(())  # type: ignore[attr-defined]
    train(model, optimizer, batches(2))
    assert sparsifier.step == 3
    with pytest.raises(ViolationError, match="A scaler skipped 2 steps, which do not count"):
        sparsifier.finalize()
    with pytest.warns(UserWarning, match="skipped 20 steps in a row") as caught:
        train(model, optimizer, batches(30))
    assert len(caught) == 1
