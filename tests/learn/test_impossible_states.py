"""States of the right shapes and types with values that no training comes to: refused by name, and nothing changes."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import nmlearn as nm
from calibrated import prepared
from nets import batches, convnet, same, sgd, snapshot, train
from nmlearn.errors import StateError

STEPS = 8
Change = Callable[[Tensor], Tensor]
METHODS: dict[str, nm.Method] = {
    "lbc": nm.LBC("2:4", end=1.0),
    "by weight": nm.LBC("2:4", end=1.0, elimination="weight"),
    "explicit": nm.LBC("2:4", end=1.0, scores="explicit", score_optimizer="adamw"),
    "one is left": nm.LBC("2:4", end=0.1),
    "gradual": nm.Gradual("2:4", end=1.0),
    "oneshot": nm.OneShot("2:4"),
    "late": nm.OneShot("2:4", at=0.9),
    "wanda": nm.Wanda("2:4"),
    "keep": nm.Keep("2:4"),
    "sste": nm.SSTE("2:4"),
    "bimask": nm.BiMask("2:4", candidates=4),
    "maskllm": nm.MaskLLM("2:4"),
    "maxq": nm.MaxQ("2:4", end=1.0),
    "srste": nm.SRSTE("2:4"),
}


def attached(name: str, steps: int) -> nm.Sparsifier:
    model = prepared(convnet(), METHODS[name])
    optimizer = sgd(model)
    sparsifier = nm.Sparsifier(model, METHODS[name]).attach(optimizer, STEPS)
    train(model, optimizer, batches(steps))
    return sparsifier


def first(change: Any) -> Change:
    """A change of the first group or place alone."""

    def changed(t: Tensor) -> Tensor:
        t.view(-1)[0] = change(t.view(-1)[0]) if callable(change) else change
        return t

    return changed


def none_of_a_group(t: Tensor) -> Tensor:
    t[(0,) * (t.dim() - 1)] = False
    return t


def flipped(t: Tensor) -> Tensor:
    """Another combination alive in place of one."""
    alive = t.view(-1, t.shape[-1])[0]
    here, there = int(alive.nonzero()[0]), int((~alive).nonzero()[0])
    alive[here], alive[there] = False, True
    return t


def negated(t: Tensor) -> Tensor:
    return -1.0 - t.abs()


CHANGES: list[tuple[str, str, Change]] = [
    *((name, "keep", torch.zeros_like) for name in ("lbc", "by weight", "one is left", "gradual", "oneshot", "late")),
    *(
        (name, "keep", lambda t: torch.full_like(t, -1))
        for name in ("one is left", "gradual", "oneshot", "wanda", "keep")
    ),
    *((name, "keep", first(torch.bitwise_not)) for name in ("lbc", "by weight", "explicit", "one is left", "gradual")),
    *(
        (name, "alive", change)
        for name in ("lbc", "explicit")
        for change in (none_of_a_group, flipped, torch.ones_like)
    ),
    *((name, key, first(math.nan)) for name in ("lbc", "by weight") for key in ("score", "momentum")),
    *((name, "score", first(math.inf)) for name in ("lbc", "explicit")),
    *(("explicit", f"score.{key}", negated) for key in ("step", "exp_avg_sq")),
    *(("explicit", f"score.{key}", first(math.nan)) for key in ("step", "exp_avg_sq", "exp_avg")),
    ("maskllm", "logits", first(math.nan)),
    ("maskllm", "logits.exp_avg_sq", negated),
    ("maskllm", "logits.step", lambda t: t - 0.5),
    *(("sste", "scale", change) for change in (torch.zeros_like, negated, first(math.nan), first(math.inf))),
    *(
        ("bimask", "rows", change)
        for change in (torch.zeros_like, first(-1), first(10**6), lambda t: t + 1, lambda t: t // 2)
    ),
]


@pytest.mark.parametrize(("name", "key", "change"), CHANGES)
def test_values_that_no_training_comes_to(name: str, key: str, change: Change) -> None:
    sparsifier, sound = attached(name, 2), copy.deepcopy(attached(name, 4).state_dict())
    sparsifier.load_state_dict(sound)
    state = copy.deepcopy(sound)
    tensors = state["weights"]["hidden.weight"]["state"]
    tensors[key] = change(tensors[key].clone())
    refused(sparsifier, state, "hidden.weight")


def refused(sparsifier: nm.Sparsifier, state: dict[str, Any], where: str) -> None:
    before = copy.deepcopy(sparsifier.state_dict()), snapshot(sparsifier.model)
    with pytest.raises(StateError) as caught:
        sparsifier.load_state_dict(state)
    assert caught.value.where.startswith(where) and caught.value.wrong and len(str(caught.value)) < 500
    assert same(list(before), [sparsifier.state_dict(), snapshot(sparsifier.model)])


@pytest.mark.parametrize("name", METHODS)
def test_a_value_that_the_schedule_does_not_have_at_this_step(name: str) -> None:
    sparsifier, sound = attached(name, 2), copy.deepcopy(attached(name, 4).state_dict())
    now = sound["weights"]["hidden.weight"]["value"]
    for value in (now + 1, now + 0.5, -1, 10**6, float(now) if isinstance(now, int) else int(now)):
        state = copy.deepcopy(sound)
        state["weights"]["hidden.weight"]["value"] = value
        refused(sparsifier, state, "hidden.weight value")


def test_steps_of_several_optimizers_that_do_not_fit() -> None:
    sparsifier, state = attached("lbc", 2), copy.deepcopy(attached("lbc", 4).state_dict())
    refused(sparsifier, state | {"steps": [5]}, "steps")
    sparsifier.load_state_dict(state | {"steps": [4]})


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("steps", [0, 1, 4, 7, 8, 9])
@pytest.mark.filterwarnings("ignore:.*beyond", "ignore:step")
def test_every_state_that_training_comes_to_is_taken(name: str, steps: int) -> None:
    sparsifier, state = attached(name, 2), attached(name, steps).state_dict()
    sparsifier.load_state_dict(copy.deepcopy(state))
    assert same(sparsifier.state_dict(), state)


@pytest.mark.parametrize("name", ["srste", "maxq", "bimask", "sste"])
def test_a_lost_dense_weight_is_part_of_a_state(name: str) -> None:
    """As it is of the model's."""
    sparsifier, state = attached(name, 2), copy.deepcopy(attached(name, 4).state_dict())
    state["weights"]["hidden.weight"]["state"]["dense"][0, 0] = math.nan
    sparsifier.load_state_dict(state)
    assert bool(sparsifier.state_dict()["weights"]["hidden.weight"]["state"]["dense"][0, 0].isnan())
