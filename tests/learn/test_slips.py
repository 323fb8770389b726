"""Slips of the hand: what is refused, what is warned of, and what the messages say."""

from __future__ import annotations

import copy
import math
import pickle
import warnings
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import nmlearn as nm
from nets import batches, convnet, sgd, train
from nmlearn.errors import AttachError, ConfigError, KernelError, StateError, ViolationError

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


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
@pytest.mark.parametrize("steps", [0, 2])
def test_copies_of_an_attached_sparsifier_are_refused(copied: Callable[[Any], Any], steps: int) -> None:
    model, optimizer, sparsifier = attached()
    train(model, optimizer, batches(steps))
    with pytest.raises(StateError, match="belongs to one model and one optimizer; save its state_dict"):
        copied(sparsifier)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_before_attach_a_copy_has_its_own_model(copied: Callable[[Any], Any]) -> None:
    """Launchers pickle callbacks, and with them a sparsifier that only has its plan."""
    twin = copied(nm.Sparsifier(model := convnet(), nm.LBC("2:4")))
    assert twin.model is not model
    optimizer = sgd(twin.model)
    twin.attach(optimizer, STEPS)
    train(twin.model, optimizer, batches(STEPS))
    assert twin.finalize().density == 0.5


def test_a_sparsifier_says_where_it_stands() -> None:
    model, optimizer, sparsifier = attached()
    train(model, optimizer, batches(3))
    assert repr(sparsifier) == "Sparsifier(lbc 2:4, 3 sparse weights, step 3 of 8)"
    assert repr(nm.Sparsifier(model, nm.SRSTE("1:4"))) == "Sparsifier(srste 1:4, 3 sparse weights, not attached)"
    train(model, optimizer, batches(5))
    sparsifier.finalize()
    assert repr(sparsifier) == "Sparsifier(lbc 2:4, 3 sparse weights, finalized)"


def test_finalize_sums_up() -> None:
    model, optimizer, sparsifier = attached()
    train(model, optimizer, batches(STEPS))
    summary = sparsifier.finalize()
    assert sparsifier.progress == 1.0 and sparsifier.step == 0
    values = [model.get_parameter(row.name).numel() for row in sparsifier.plan.sparse]
    assert summary.weights == 3 and summary.density == 0.5 and summary.dense_bytes == 4 * sum(values)
    # Half of the values of four bytes, and log2(C(4, 2)), rounded up to 3 bits a group of four.
    assert summary.packed_bytes == sum(2 * n + -(-3 * n // 4 // 8) for n in values)
    first, second = str(summary).splitlines()
    assert first.startswith("3 weights verified: density 0.500") and "nm.save(model" in second


def test_the_summary_of_an_average_is_of_the_average() -> None:
    model, optimizer, sparsifier = attached()
    train(model, optimizer, batches(STEPS))
    average = copy.deepcopy(model)
    with torch.no_grad():
        average.hidden.weight.fill_(1.0)
        average.conv.weight.zero_()
    summary = sparsifier.finalize(average)
    assert summary.weights == 3 and 0 < summary.density < 0.5 and sparsifier.step == STEPS
    model = convnet()
    dense = nm.Sparsifier(model, nm.METHODS["dense"]("2:4")).attach(sgd(model), STEPS).finalize()
    assert dense.weights == 0 and dense.dense_bytes == dense.packed_bytes == 0 and len(str(dense).splitlines()) == 2


def test_finalize_without_attach_asks_for_it() -> None:
    model = convnet()
    sparsifier, optimizer = nm.Sparsifier(model, nm.LBC("2:4")), sgd(model)
    train(model, optimizer, batches(2))
    with pytest.raises(ViolationError, match=r"no optimizer step was seen; was attach called on this optimizer\?"):
        sparsifier.finalize()
    sparsifier.attach(sgd(model), STEPS)
    train(model, optimizer, batches(2))
    with pytest.raises(ViolationError, match=r"no optimizer step was seen; was attach called on this optimizer\?"):
        sparsifier.finalize()


def test_finalize_in_the_middle_names_the_step_and_likely_causes() -> None:
    model, optimizer, sparsifier = attached(20)
    train(model, optimizer, batches(5))
    with pytest.raises(
        ViolationError,
        match=r"step 5 of total_steps=20 .*resumed.* 4 times the steps.*complete=True",
    ):
        sparsifier.finalize()


def test_a_weight_written_to_after_the_end_is_no_matter_of_steps() -> None:
    model, optimizer, sparsifier = attached()
    train(model, optimizer, batches(STEPS))
    torch.nn.init.ones_(model.hidden.weight)
    with pytest.raises(ViolationError, match="let nothing but the optimizer write into these weights"):
        sparsifier.finalize()


def test_steps_far_beyond_the_last_are_warned_of_once() -> None:
    model, optimizer, sparsifier = attached()
    train(model, optimizer, batches(STEPS))
    with pytest.warns(UserWarning, match="beyond total_steps=8") as caught:
        train(model, optimizer, batches(STEPS))
    assert len(caught) == 1 and caught[0].filename.endswith("nets.py")
    sparsifier.finalize()


@pytest.mark.parametrize(
    ("method", "last"),
    [
        (nm.LBC("2:4"), 5),
        (nm.LBC("2:4", end=0.1), 1),
        (nm.Gradual("2:4", end=0.8), 8),
        (nm.OneShot("2:4", at=0.3), 3),
        (nm.MaxQ("2:4"), 3),
    ],
)
def test_a_schedule_of_a_few_steps_is_warned_of_when_attached(method: nm.Method, last: int) -> None:
    model = convnet()
    with pytest.warns(UserWarning, match=rf"final after {last} optimizer steps of total_steps=10.*epochs \* batches"):
        nm.Sparsifier(model, method).attach(sgd(model), 10)


def test_what_is_noticed_points_at_the_line_of_the_user() -> None:
    model = convnet()
    optimizer = sgd(model)
    with pytest.warns(UserWarning, match="final after 5") as caught:
        sparsifier = nm.Sparsifier(model, nm.LBC("2:4")).attach(optimizer, 10)
    model.hidden.weight.requires_grad_(False)
    train(model, optimizer, batches(10))
    with pytest.warns(UserWarning, match="no gradient") as later:
        sparsifier.finalize()
    assert caught[0].filename == later[0].filename == __file__


@pytest.mark.parametrize(
    ("method", "total"), [(nm.LBC("2:4"), 20), (nm.OneShot("2:4"), 1), (nm.SRSTE("2:4"), 1), (nm.BiMask("2:4"), 1)]
)
def test_a_schedule_with_time_or_without_need_for_it_is_not_warned_of(method: nm.Method, total: int) -> None:
    model = convnet()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nm.Sparsifier(model, method).attach(sgd(model), total)


@pytest.mark.parametrize("method", [nm.LBC("2:4"), nm.SRSTE("2:4"), nm.OneShot("2:4")])
def test_a_weight_that_never_had_a_gradient_is_named_at_the_end(method: nm.Method) -> None:
    model = convnet()
    optimizer = sgd(model)
    sparsifier = nm.Sparsifier(model, method).attach(optimizer, STEPS)
    model.hidden.weight.requires_grad_(False)
    train(model, optimizer, batches(STEPS))
    with pytest.warns(UserWarning, match=r"^hidden\.weight: no gradient in any of the 8 steps"):
        sparsifier.finalize()


def test_a_weight_that_had_one_gradient_is_not() -> None:
    model, optimizer, sparsifier = attached()
    train(model, optimizer, batches(1))
    model.hidden.weight.requires_grad_(False)
    train(model, optimizer, batches(STEPS - 1))
    assert sparsifier.finalize().weights == 3


def test_of_a_training_run_that_was_resumed_nothing_is_said_of_gradients() -> None:
    """Its first steps were seen by another sparsifier; it may have been killed behind the last."""
    model, optimizer, sparsifier = attached()
    train(model, optimizer, batches(STEPS))
    saved = copy.deepcopy(sparsifier.state_dict())
    sparsifier.detach()
    again = nm.Sparsifier(model, nm.LBC("2:4")).attach(optimizer, STEPS, travels=False)
    again.load_state_dict(saved)
    assert again.finalize().weights == 3


@pytest.mark.parametrize("end", [1.0, 0.01])
def test_a_layer_that_is_unfrozen_later_is_named_once(end: float) -> None:
    """At the next removal, or at the end."""
    model = convnet()
    model.hidden.weight.requires_grad_(False)
    optimizer = sgd(model)
    sparsifier = nm.Sparsifier(model, nm.LBC("2:4", end=end)).attach(optimizer, 24)
    assert len(sparsifier.plan.sparse) == 2
    train(model, optimizer, batches(2))
    model.hidden.weight.requires_grad_(True)
    with pytest.warns(
        UserWarning, match=r"^hidden\.weight: frozen when the sparsifier was made.*rule of None"
    ) as caught:
        train(model, optimizer, batches(22))
        sparsifier.finalize()
    assert len(caught) == 1


def test_a_layer_that_a_rule_leaves_dense_may_be_unfrozen() -> None:
    model = convnet()
    model.hidden.weight.requires_grad_(False)
    optimizer = sgd(model)
    sparsifier = nm.Sparsifier(model, nm.LBC("2:4"), {"hidden": None}).attach(optimizer, STEPS)
    model.hidden.weight.requires_grad_(True)
    train(model, optimizer, batches(STEPS))
    assert sparsifier.finalize().weights == 2


def packed(model: Any, path: Path) -> None:
    nm.save(model, path)


def packed_state(model: Any, path: Path) -> None:
    nm.save(model.state_dict(), path)


@pytest.mark.parametrize("save", [packed, packed_state])
def test_a_packed_file_in_mid_schedule_is_warned_of(save: Callable[[Any, Path], None], tmp_path: Path) -> None:
    model, optimizer, sparsifier = attached(20)
    path = tmp_path / "model.safetensors"
    train(model, optimizer, batches(4))
    with pytest.warns(UserWarning, match=r"removing values of 3 of these weights, such as conv\.weight") as caught:
        save(model, path)
    assert caught[0].filename == __file__
    nm.save(model, path, packed=False)  # a dense file says nothing of patterns
    save(copy.deepcopy(model), path)  # nobody removes anything from a copy
    train(model, optimizer, batches(16))
    save(model, path)
    sparsifier.finalize()
    save(model, path)


def test_a_forgotten_sparsifier_warns_of_nothing(tmp_path: Path) -> None:
    model, optimizer, sparsifier = attached(20)
    train(model, optimizer, batches(4))
    cycle: list[Any] = [optimizer]
    cycle.append(cycle)
    del optimizer, sparsifier, cycle
    nm.save(model, tmp_path / "model.safetensors")


def test_a_model_in_mid_schedule_is_not_accelerated() -> None:
    model, optimizer, sparsifier = attached(20)
    train(model, optimizer, batches(4))
    example = batches(1)[0][0]
    with pytest.raises(KernelError, match=r"conv\.weight and 2 more.*still removing.*call finalize\(\)"):
        nm.accelerate(model.eval(), example, cache=None)
    assert type(model.hidden) is torch.nn.Linear
    sparsifier.detach()
    nm.accelerate(copy.deepcopy(model).eval(), example, cache=None)


def trained(model: nn.Module) -> nn.Module:
    """Rows of different sizes, as training makes them."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter *= torch.linspace(0.5, 2.0, len(parameter)).view(-1, *[1] * (parameter.dim() - 1))
    return model


@pytest.mark.parametrize("make", [convnet, lambda: nn.Sequential(nn.Linear(32, 64), nn.Linear(64, 4))])
def test_scores_that_begin_equal_on_trained_weights_are_warned_of(make: Callable[[], nn.Module]) -> None:
    model = trained(make())
    optimizer = sgd(model)
    with pytest.warns(UserWarning, match=r'look trained.*prior="magnitude"'):
        sparsifier = nm.Sparsifier(model, nm.LBC("2:4")).attach(optimizer, 100)
    sparsifier.detach()
    for method in (nm.LBC("2:4", prior="magnitude"), nm.LBC("2:4", criterion="fisher"), nm.SRSTE("2:4")):
        nm.Sparsifier(model, method).attach(optimizer, 100).detach()
    fresh = make()
    nm.Sparsifier(fresh, nm.LBC("2:4")).attach(sgd(fresh), 100).detach()
