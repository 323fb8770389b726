"""How long a sparsifier acts: with its optimizer, and no longer than either of them."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nmlearn as nm
from nets import batches, convnet, sgd, train
from nmlearn.errors import AttachError

STEPS = 8
METHODS = [nm.LBC("2:4"), nm.SRSTE("2:4"), nm.MaskLLM("2:4"), nm.BiMask("2:4")]


def attached(method: nm.Method | None = None, model: nn.Module | None = None) -> tuple[Any, Any, nm.Sparsifier]:
    model = model or convnet()
    optimizer = sgd(model)
    return model, optimizer, nm.Sparsifier(model, method or nm.LBC("2:4")).attach(optimizer, STEPS)


def hooks(model: nn.Module) -> int:
    """How many hooks there are on a model's weights and layers."""
    on_weights = sum(len(p._post_accumulate_grad_hooks or ()) for p in model.parameters())
    return on_weights + sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.fixture
def no_collection() -> Any:
    """References alone must end a sparsifier: a cell that is run again does not wait for the collector."""
    sgd(convnet())  # torch's compiler is loaded by the first optimizer, which that keeps alive
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collection")
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_a_forgotten_sparsifier_is_gone_with_its_optimizer(method: nm.Method) -> None:
    model, optimizer, sparsifier = attached(method)
    train(model, optimizer, batches(STEPS))
    gone = weakref.ref(sparsifier)
    del sparsifier, optimizer
    assert gone() is None and not hooks(model)
    x, y = batches(1)[0]
    model.zero_grad()
    F.cross_entropy(model(x), y).backward()
    assert bool((model.hidden.weight.grad[model.hidden.weight == 0] != 0).any())


@pytest.mark.usefixtures("no_collection")
def test_the_next_sparsifier_learns_from_whole_gradients() -> None:
    model, optimizer, sparsifier = attached()
    train(model, optimizer, batches(STEPS))
    pruned = model.hidden.weight == 0
    del sparsifier, optimizer
    model, optimizer, sparsifier = attached(model=model)
    train(model, optimizer, batches(1))
    assert all(bool(mask.all()) for mask in sparsifier.masks().values())
    assert bool((model.hidden.weight.grad[pruned] != 0).any())


@pytest.mark.usefixtures("no_collection")
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_a_sparsifier_that_nobody_holds_lives_with_its_optimizer(method: nm.Method) -> None:
    model = convnet()
    optimizer = sgd(model)
    nm.Sparsifier(model, method).attach(optimizer, STEPS)
    train(model, optimizer, batches(STEPS))
    weight = model.hidden.weight.detach().view(32, -1, 4)
    assert int((weight != 0).sum(-1).max()) <= 2


@pytest.mark.usefixtures("no_collection")
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_without_its_optimizer_a_sparsifier_still_verifies_and_hinders_nobody(method: nm.Method) -> None:
    model, optimizer, sparsifier = attached(method)
    train(model, optimizer, batches(STEPS))
    saved = sparsifier.state_dict()
    del optimizer
    assert not hooks(model)
    sparsifier.load_state_dict(saved)
    sparsifier.finalize()
    train(*attached(method, model)[:2], batches(STEPS))


def test_a_second_living_sparsifier_is_refused_whoever_holds_the_optimizer() -> None:
    model, optimizer, sparsifier = attached()
    with pytest.raises(AttachError, match="another sparsifier is attached to this weight") as caught:
        attached(nm.SRSTE("2:4"), model)
    assert caught.value.where == "conv.weight"
    sparsifier.detach()
    attached(nm.SRSTE("2:4"), model)
    train(model, optimizer, batches(1))


def test_a_sparsifier_in_a_cycle_is_collected_before_it_is_refused(no_collection: None) -> None:
    model, optimizer, sparsifier = attached()
    cycle: list[Any] = [sparsifier, optimizer]
    cycle.append(cycle)
    del sparsifier, optimizer, cycle
    attached(model=model)


def test_two_sparsifiers_share_a_model_by_rules() -> None:
    model = convnet()
    optimizer = sgd(model)
    first = nm.Sparsifier(model, nm.LBC("2:4"), {"hidden": None}).attach(optimizer, STEPS)
    other = torch.optim.SGD(model.hidden.parameters(), 0.05)
    second = nm.Sparsifier(model, nm.SRSTE("2:4"), {"": None, "hidden": "2:4"}).attach(other, STEPS)
    for x, y in batches(STEPS):
        model.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        other.step()
    first.finalize()
    second.finalize()
