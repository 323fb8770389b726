"""Every setting of every registered method, with anything at all: it works, or an error names it."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nmlearn as nm
from calibrated import prepared
from nets import sgd
from nmlearn.errors import ConfigError, PatternError, ScheduleError, StateError

FIELDS = [(name, field.name) for name, kind in nm.METHODS.items() for field in dataclasses.fields(kind)]
# None of them is the setting of any field.
NEVER: list[Any] = [
    "x",
    "",
    b"x",
    1j,
    {1, 2},
    [],
    [None, 1],
    (math.nan, 1.0),
    object(),
    torch.ones(3),
    -math.inf,
    math.nan,
]
NEVER += [math.inf, -(10**31), 10**5000, [10**5000, 1], 1e300, -1e300]
SOMETIMES: list[Any] = [None, True, False, -1, -0.5, 0, 0.0, 0.5, 1, 1.5, 2, 3.0, 10**20, 2**63 - 1, 1e30, 1e-300]
SOMETIMES += [[1, 2], (2.0, 0.5), "magnitude", "none", {1: 2}]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(F.relu(self.first(x)))


def learn(method: nm.Method) -> None:
    """Three steps, and a state that can be loaded."""
    torch.manual_seed(0)
    model = prepared(Net(), method)
    optimizer = sgd(model)
    sparsifier = nm.Sparsifier(model, method).attach(optimizer, 3)
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(model(torch.randn(4, 8)), torch.tensor([0, 1, 2, 3])).backward()
        optimizer.step()
    sparsifier.load_state_dict(sparsifier.state_dict())
    sparsifier.finalize()


def built(name: str, field: str, value: Any) -> nm.Method:
    options = {field: value} if field == "pattern" else {"pattern": "2:4", field: value}
    return nm.METHODS[name](**options)


@pytest.mark.parametrize(("name", "field"), FIELDS)
def test_what_no_field_can_be_is_refused_by_name(name: str, field: str) -> None:
    for value in NEVER:
        with pytest.raises(PatternError if field == "pattern" else ConfigError) as caught:
            built(name, field, value)
        error = caught.value
        assert error.where == ("pattern" if field == "pattern" else f"method.options.{field}")
        assert error.given and error.wrong and error.fix and len(str(error)) < 500


# Nobody waits for that many steps.
LONG = ("refit_steps", 2**63 - 1)


@pytest.mark.parametrize(("name", "field"), [each for each in FIELDS if each[1] != "pattern"])
def test_any_other_value_works_or_is_refused(name: str, field: str) -> None:
    worked = []
    for value in SOMETIMES:
        try:
            method = built(name, field, value)
            if (field, value) != LONG:
                learn(method)
        except (ConfigError, ScheduleError) as error:
            assert field in str(error)
        except StateError as error:  # it learned, and lost its numbers by it
            assert "not finite" in str(error)
        else:
            worked.append(value)
    words = {"start", "relative", "refit", "scores", "score_optimizer", "elimination", "fall", "gradient", "stages"}
    assert worked or field in words


@pytest.mark.parametrize(
    ("name", "field"),
    [(name, "decay") for name in ("srste", "bimask", "maxq", "tsrste")]
    + [("stepadam", "weight_decay"), ("cast", "weight_decay"), ("cast", "decay"), ("admm", "rho")]
    + [("lbc", "momentum"), ("lbc", "weight_decay")]
    + [("maskllm", field) for field in ("lr", "weight_decay", "regularization")],
)
def test_what_cannot_be_negative(name: str, field: str) -> None:
    with pytest.raises(ConfigError, match=rf"method.options.{field}: given -1.0: it cannot be negative"):
        built(name, field, -1)


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"scale": [1, 2]}, (1.0, 2.0)),
        ({"end": torch.tensor(0.5).numpy()[()]}, 0.5),
        ({"seed": torch.tensor(3).numpy()[()]}, 3),
        ({"lr": None}, None),
    ],
)
def test_numbers_are_pythons_own(options: dict[str, Any], kept: Any) -> None:
    """So that a state says what it was saved with: of other objects it would not know."""
    (field,) = options
    method = nm.MaskLLM("2:4", **options)
    assert getattr(method, field) == kept and type(getattr(method, field)) is type(kept)
    assert method.describe()[field] == (list(kept) if isinstance(kept, tuple) else kept)


def test_a_method_with_annotations_of_its_own_checks_itself() -> None:
    @dataclasses.dataclass(frozen=True)
    class Own(nm.OneShot):
        places: Unknown = None  # type: ignore[name-defined]  # noqa: F821

    assert Own("2:4", places=object()).at == 0.0


def test_a_pattern_that_python_cannot_write() -> None:
    for given in (10**5000, "9" * 5000 + ":4", "2:" + "9" * 5000):
        with pytest.raises(PatternError, match="this is not a pattern N:M"):
            nm.Pattern(given)  # type: ignore[arg-type]
    with pytest.raises(PatternError, match="needs 1 <= N <= M <= 64"):
        nm.Pattern(10**5000, 4)
