"""Checkpoints travel by themselves: the sparsifier's state in its optimizer's own ``state_dict``."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import nn, optim

import nmlearn as nm
from nets import batches, convnet, sgd, train
from nmlearn.errors import StateError
from nmlearn.integrations.timm import carry
from nmlearn.methods import METHODS
from nmlearn.methods.method import Method

STEPS, KILLED = 12, 4
# Those that learn masks; the others take zeros that are there.
SPARSE = [name for name, method in METHODS.items() if method.holds != "nothing" and name != "keep"]
SPARSE = [name for name in SPARSE if METHODS[name]("2:4").needs == "nothing"]


def made(name: str) -> Method:
    return METHODS[name]("2:4")


def begun(method: Method) -> tuple[nn.Module, optim.Optimizer, nm.Sparsifier]:
    torch.manual_seed(0)
    model = convnet()
    optimizer = sgd(model)
    return model, optimizer, nm.Sparsifier(model, method).attach(optimizer, STEPS)


def stored(model: nn.Module, optimizer: optim.Optimizer) -> Any:
    """What a script that knows nothing of sparsifiers saves, and reads without pickled code."""
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("load_first", [True, False], ids=["load, attach", "attach, load"])
@pytest.mark.parametrize("name", SPARSE)
def test_a_script_that_saves_its_optimizer_resumes_bit_for_bit(name: str, load_first: bool) -> None:
    data = batches(STEPS)
    model, optimizer, sparsifier = begun(made(name))
    train(model, optimizer, data[:KILLED])
    checkpoint = stored(model, optimizer)
    train(model, optimizer, data[KILLED:])
    sparsifier.finalize()

    torch.manual_seed(7)
    other = convnet()
    again = sgd(other)
    learner = nm.Sparsifier(other, made(name))
    if not load_first:
        learner.attach(again, STEPS)
    other.load_state_dict(checkpoint["model"])
    again.load_state_dict(checkpoint["optimizer"])
    if load_first:
        learner.attach(again, STEPS)
    assert learner.step == KILLED
    assert all("nmlearn" not in group for group in again.param_groups)
    train(other, again, data[KILLED:])
    learner.finalize()
    for (key, mine), (_, theirs) in zip(other.state_dict().items(), model.state_dict().items(), strict=True):
        assert torch.equal(mine, theirs), key


def test_an_ended_sparsifier_leaves_the_optimizers_state_alone() -> None:
    model, optimizer, sparsifier = begun(nm.LBC("2:4"))
    plain = sgd(convnet()).state_dict()["param_groups"]
    assert "nmlearn" in optimizer.state_dict()["param_groups"][0]
    train(model, optimizer, batches(STEPS))
    sparsifier.finalize()
    assert [set(group) for group in optimizer.state_dict()["param_groups"]] == [set(group) for group in plain]


def test_a_script_without_nmlearn_loads_it_and_trains_on() -> None:
    model, optimizer, _ = begun(nm.LBC("2:4"))
    train(model, optimizer, batches(KILLED))
    checkpoint = stored(model, optimizer)
    other = convnet()
    again = sgd(other)
    again.load_state_dict(checkpoint["optimizer"])
    train(other, again, batches(2))
    passed_on = stored(other, again)  # and passes it on

    third = convnet()
    last = sgd(third)
    last.load_state_dict(passed_on["optimizer"])
    assert nm.Sparsifier(third, nm.LBC("2:4")).attach(last, STEPS).step == KILLED


@pytest.mark.parametrize("load_first", [True, False])
def test_the_state_of_another_method_is_refused_and_changes_nothing(load_first: bool) -> None:
    model, optimizer, _ = begun(nm.LBC("2:4"))
    train(model, optimizer, batches(KILLED))
    checkpoint = stored(model, optimizer)
    other = convnet()
    again = sgd(other)
    learner = nm.Sparsifier(other, nm.SRSTE("2:4"))
    if load_first:
        again.load_state_dict(checkpoint["optimizer"])
        weights = [p.detach().clone() for p in other.parameters()]
        with pytest.raises(StateError, match="this sparsifier has srste"):
            learner.attach(again, STEPS)
        assert learner.total_steps == 0
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(other.parameters(), weights, strict=True))
        assert nm.Sparsifier(other, nm.LBC("2:4")).attach(again, STEPS).step == KILLED  # the state waits as before
        return
    learner.attach(again, STEPS)
    before = copy.deepcopy(again.state_dict()["state"])
    with pytest.raises(StateError, match="this sparsifier has srste"):
        again.load_state_dict(checkpoint["optimizer"])
    assert again.state_dict()["state"] == before and learner.step == 0


def test_two_sparsifiers_on_one_optimizer_both_travel() -> None:
    def two(model: nn.Module, optimizer: optim.Optimizer) -> list[nm.Sparsifier]:
        rules: list[dict[str, Any]] = [{"conv": None, "grouped": None}, {"hidden": None}]
        methods = [nm.LBC("2:4"), nm.SRSTE("2:4")]
        return [nm.Sparsifier(model, m, r).attach(optimizer, STEPS) for m, r in zip(methods, rules, strict=True)]

    data = batches(STEPS)
    model = convnet()
    optimizer = sgd(model)
    both = two(model, optimizer)
    train(model, optimizer, data[:KILLED])
    checkpoint = stored(model, optimizer)
    train(model, optimizer, data[KILLED:])
    for load_first in (True, False):
        other = convnet()
        again = sgd(other)
        other.load_state_dict(checkpoint["model"])
        if load_first:
            again.load_state_dict(copy.deepcopy(checkpoint["optimizer"]))  # torch steps what it is given in place
            resumed = two(other, again)
        else:
            resumed = two(other, again)
            again.load_state_dict(copy.deepcopy(checkpoint["optimizer"]))
        assert [each.step for each in resumed] == [KILLED, KILLED]
        train(other, again, data[KILLED:])
        for key, tensor in other.state_dict().items():
            assert torch.equal(tensor, model.state_dict()[key]), key
    assert [each.progress for each in both] == [1.0, 1.0]


def test_a_checkpoint_in_the_place_of_version_0_1_still_loads() -> None:
    model, optimizer, sparsifier = begun(nm.LBC("2:4"))
    train(model, optimizer, batches(KILLED))
    old = optimizer.state_dict()
    states = old["param_groups"][0].pop("nmlearn")
    old |= {f"nmlearn:{name}": state for name, state in states.items()}
    other, again, learner = begun(nm.LBC("2:4"))
    other.load_state_dict(model.state_dict())
    again.load_state_dict(old)
    assert learner.step == sparsifier.step == KILLED


def test_a_trainer_that_saves_the_state_itself_may_say_so() -> None:
    model = convnet()
    optimizer = sgd(model)
    nm.Sparsifier(model, nm.LBC("2:4")).attach(optimizer, STEPS, travels=False)
    assert "nmlearn" not in optimizer.state_dict()["param_groups"][0]


def test_the_call_of_version_0_1_for_timm_does_nothing_and_says_so() -> None:
    _, optimizer, sparsifier = begun(nm.LBC("2:4"))
    keys = optimizer.state_dict().keys()
    with pytest.warns(DeprecationWarning, match="leave it out"):
        carry(sparsifier, optimizer)
    assert optimizer.state_dict().keys() == keys
