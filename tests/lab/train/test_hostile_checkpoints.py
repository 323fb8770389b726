"""A checkpoint of right checksums in which anything may stand is refused before anything is lost, or goes on."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import toy
import wrong_states
from nmlearn.errors import NMLearnError, StateError
from nmlearn.lab.train import OptimConfig, TrainConfig, checkpoints, train


class Stop(BaseException):
    """Stands for the end of the process."""


def stop(event: dict[str, Any]) -> None:
    if event["event"] == "step":
        raise Stop


def configured(folder: Path, name: str, **changes: Any) -> TrainConfig:
    optim = OptimConfig("adamw", lr=0.01) if name == "adamw" else OptimConfig(lr=0.05)
    return toy.config(folder, optim=optim, ema=0.9, checkpoint_every=1, **changes)


@pytest.fixture(scope="module", params=["sgd", "adamw"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run that was killed after its second step, whose checkpoint is of the first."""
    toy.register()
    folder = tmp_path_factory.mktemp(request.param) / "run"

    def stop_at_two(event: dict[str, Any]) -> None:
        if event["event"] == "step" and event["step"] == 2:
            raise Stop

    with pytest.raises(Stop):
        train(configured(folder, request.param), stop_at_two)
    return folder, request.param


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_one_change_of_a_checkpoint(run: tuple[Path, str], data: st.DataObject) -> None:
    folder, name = run
    path, toy_config = folder / "checkpoints" / "last.pt", configured(folder, name)
    sound = path.read_bytes()
    state = wrong_states.with_one_change(torch.load(path, weights_only=True), data)
    torch.save(state, path)
    before: dict[str, bytes] = files(folder)
    events: list[str] = []

    def listen(event: dict[str, Any]) -> None:
        events.append(event["event"])
        stop(event)

    try:
        train(toy_config, listen)
    except NMLearnError as error:
        assert events or error.where.startswith(str(path)) or isinstance(error, StateError)
        assert "\n" not in str(error) and len(str(error)) < 700
        assert events or files(folder) == before  # what was lost (NaN) is noticed when it is used
    except Stop:
        assert checkpoints.load(path)["step"] == state["step"]
    finally:
        path.write_bytes(sound)


CHANGES: list[tuple[str, Callable[[dict[str, Any]], object], str]] = [
    ("a step beyond the end", lambda s: s.update(step=99), "step 99"),
    ("a step of another moment", lambda s: s.update(step=3), "two moments"),
    ("a step that is text", lambda s: s.update(step="1"), "step = 1"),
    ("no list of groups", lambda s: s["optimizer"].update(param_groups={}), "groups"),
    ("a moment's shape", lambda s: s["optimizer"]["state"][0].update(exp_avg=torch.zeros(2)), "weight 0"),
    ("a weight that is none", lambda s: s["optimizer"]["state"].update({99: {}}), "weight 99"),
    ("no average", lambda s: s.update(average=None), "an average"),
    ("a mask of numbers", lambda s: s["masks"].update({"3.weight": torch.zeros(2)}), "masks with 3.weight"),
    ("lost seconds", lambda s: s.update(seconds=float("nan")), "seconds = nan"),
    ("a size of metrics", lambda s: s.update(metrics_bytes=-1), "metrics_bytes = -1"),
    ("random text", lambda s: s.update(random=["x"]), "random generator"),
]


@pytest.mark.parametrize(("change", "said"), [c[1:] for c in CHANGES], ids=[c[0] for c in CHANGES])
def test_what_is_wrong_is_named(
    run: tuple[Path, str], tmp_path: Path, change: Callable[[dict[str, Any]], object], said: str
) -> None:
    """Named as the checkpoint to start from, by a run that another one would replace: that one stays."""
    state = torch.load(run[0] / "checkpoints" / "last.pt", weights_only=True)
    change(state)
    torch.save(state, tmp_path / "other.pt")
    folder = Path(shutil.copytree(run[0], tmp_path / "run"))
    before = files(folder)
    with pytest.raises(NMLearnError) as caught:
        train(configured(folder, run[1], resume=str(tmp_path / "other.pt")))
    assert said in str(caught.value) and "other.pt" in caught.value.where
    assert files(folder) == before


def test_the_random_state_of_another_device_is_left_alone(run: tuple[Path, str], tmp_path: Path) -> None:
    """A run on a GPU may go on without one: docs/faults.md says so."""
    folder = Path(shutil.copytree(run[0], tmp_path / "run"))
    path = folder / "checkpoints" / "last.pt"
    state = torch.load(path, weights_only=True)
    torch.save(state | {"random": [torch.zeros(16, dtype=torch.uint8)]}, path)
    with pytest.raises(Stop):
        train(configured(folder, run[1]), stop)
