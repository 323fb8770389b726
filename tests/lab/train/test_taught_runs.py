"""A teacher in a recipe: the model at the start, a finished run, or a file; and runs that resume with it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import toy
from nmlearn.errors import ConfigError, FormatError, NMLearnError, StateError
from nmlearn.lab.train import CompareConfig, DataConfig, OptimConfig, TrainConfig, checkpoints, recipe, train
from nmlearn.lab.train.compare import plan_runs
from nmlearn.lab.train.config import DistillationConfig
from nmlearn.lab.train.setting import check

START = DistillationConfig("start", hidden={"3": 1.0, "6": 0.5}, logits=0.5)


@pytest.fixture(autouse=True)
def _toys() -> None:
    toy.register()


@pytest.fixture
def dense(tmp_path: Path) -> Path:
    """A finished dense run, of another model."""
    train(toy.config(tmp_path / "dense", "dense", "toy-mlp", epochs=1))
    return tmp_path / "dense"


def model(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def same_model(a: Path, b: Path) -> bool:
    left, right = model(a), model(b)
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


def events(folder: Path, kind: str) -> list[dict[str, Any]]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [event for event in lines if event["event"] == kind]


@pytest.mark.parametrize("teacher", ["start", "run"])
@pytest.mark.parametrize("step", [4, 11])
def test_a_killed_run_ends_with_the_same_bits(teacher: str, step: int, tmp_path: Path, dense: Path) -> None:
    taught = START if teacher == "start" else DistillationConfig(str(dense), logits=1.0, temperature=3.0)
    more = {
        "checkpoint_every": 3,
        "distillation": taught,
        "accumulate": 2,
        "data": DataConfig("toy", None, {"noise": 0.3}),
    }
    whole, killed = (toy.config(tmp_path / name, **more) for name in ("whole", "killed"))
    train(whole)
    with pytest.raises(toy.Killed):
        train(killed, toy.kill_after(step))
    train(killed)
    assert same_model(tmp_path / "whole", tmp_path / "killed")
    train(toy.config(tmp_path / "alone", **(more | {"distillation": DistillationConfig()})))
    assert not same_model(tmp_path / "whole", tmp_path / "alone")
    taught_steps, alone_steps = events(tmp_path / "killed", "train"), events(tmp_path / "alone", "train")
    assert all(event["distillation"] > 0 for event in taught_steps) and "distillation" not in alone_steps[0]


def test_the_start_is_in_the_checkpoint(tmp_path: Path) -> None:
    """The weights of the first step, although those of the model have moved on."""
    train(toy.config(tmp_path / "start", "dense", distillation=START, epochs=1, optim=OptimConfig(lr=0.0)))
    train(toy.config(tmp_path / "run", "dense", distillation=START, epochs=1))
    start = checkpoints.load(tmp_path / "start" / "checkpoints" / "last.pt")["model"]
    saved = checkpoints.load(tmp_path / "run" / "checkpoints" / "last.pt")
    copy = saved["distillation"]["copy"]
    learned = [name for name in copy if name.endswith("weight") or name.endswith("bias")]
    assert copy.keys() == saved["model"].keys() and learned
    assert all(torch.equal(copy[name], start[name]) for name in learned)
    assert not torch.equal(copy["3.weight"], saved["model"]["3.weight"])


def test_with_a_weight_of_zero_it_is_as_if_there_were_none(tmp_path: Path, dense: Path) -> None:
    """Neither the making of the teacher nor the watching changes a bit."""
    train(toy.config(tmp_path / "alone"))
    for name, teacher in {"start": "start", "run": str(dense)}.items():
        hidden = {"3": 0.0} if teacher == "start" else {"1": 0.0}
        train(toy.config(tmp_path / name, distillation=DistillationConfig(teacher, hidden=hidden)))
        assert same_model(tmp_path / "alone", tmp_path / name)


def test_the_parts_of_a_batch_add_up(tmp_path: Path, dense: Path) -> None:
    """The divergence is a mean over examples, as the loss is."""
    taught = DistillationConfig(str(dense), logits=5.0)
    for parts in (1, 4):
        more = {"accumulate": parts, "distillation": taught, "epochs": 1}
        train(toy.config(tmp_path / str(parts), "dense", "toy-mlp", **more))
    one, four = model(tmp_path / "1"), model(tmp_path / "4")
    for name in one:
        torch.testing.assert_close(one[name], four[name], rtol=0, atol=1e-5)


def test_a_file_is_of_the_same_model(tmp_path: Path, dense: Path) -> None:
    file = dense / "model" / "model.safetensors"
    found = []
    for name, teacher in {"file": file, "run": dense}.items():
        taught = DistillationConfig(str(teacher), hidden={"1": 1.0})
        train(toy.config(tmp_path / name, "lbc", "toy-mlp", distillation=taught, epochs=1))
        found.append(tmp_path / name)
    assert same_model(*found)
    with pytest.raises(FormatError, match=r"distillation.teacher: .* cannot be loaded into Sequential"):
        train(toy.config(tmp_path / "x", distillation=DistillationConfig(str(file), logits=1.0)))


def test_every_arm_of_a_comparison_has_it(tmp_path: Path) -> None:
    base = toy.config(tmp_path, distillation=START)
    runs = list(plan_runs(CompareConfig(train=base, methods=("dense", "srste", "lbc"), out=str(tmp_path))))
    assert len(runs) == 3 and all(run.config.distillation == START for run in runs)
    text = recipe.dumps(runs[0].config)
    assert recipe.build(TrainConfig, recipe.loads(text)).distillation == START


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("teacher: start", "start with neither hidden nor logits"),
        ("logits: 1.0", "hidden or logits without a teacher"),
        ('hidden: {"3": 1.0}', "hidden or logits without a teacher"),
        ("{teacher: start, logits: -1.0}", "distillation.logits: given -1.0: must be at least 0"),
        ('{teacher: start, hidden: {"a.*": -1}}', r"distillation.hidden\['a.\*'\]: given -1"),
        ("{teacher: start, logits: 1.0, temperature: 0}", "distillation.temperature: given 0"),
        ("{teacher: start, hidden: 1.0}", "distillation.hidden.*must be a mapping"),
        ("{teecher: start}", "did you mean teacher"),
    ],
)
def test_settings_that_are_refused(settings: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        recipe.build(TrainConfig, {"distillation": recipe.loads(settings)})


def test_what_is_refused_before_anything_is_trained(tmp_path: Path, dense: Path) -> None:
    cases: list[tuple[str, dict[str, Any], type[NMLearnError], str]] = [
        (str(tmp_path / "none"), {"logits": 1.0}, FormatError, "distillation.teacher.*No such file"),
        (str(tmp_path), {"logits": 1.0}, ConfigError, "no finished run is there"),
        ("start", {"hidden": {"blocks.*": 1.0}}, ConfigError, "it matches no module"),
        (str(dense), {"hidden": {"6": 1.0}}, ConfigError, "no modules of these names"),
    ]
    for teacher, terms, kind, message in cases:
        config = toy.config(tmp_path / "run", distillation=DistillationConfig(teacher, **terms))
        for begin in (lambda config=config: check([config]), lambda config=config: train(config)):
            with pytest.raises(kind, match=message):
                begin()
    assert not (tmp_path / "run").exists()


def test_checkpoints_that_are_refused(tmp_path: Path, dense: Path) -> None:
    """Of another teacher's file, and without the teacher that the settings have."""
    taught = DistillationConfig(str(dense), logits=1.0)
    config = toy.config(tmp_path / "run", distillation=taught, checkpoint_every=3)
    with pytest.raises(toy.Killed):
        train(config, toy.kill_after(4))
    train(toy.config(tmp_path / "other", "dense", "toy-mlp", epochs=1, seed=5))
    written = (dense / "model" / "model.safetensors").read_bytes()
    (dense / "model" / "model.safetensors").write_bytes(
        (tmp_path / "other" / "model" / "model.safetensors").read_bytes()
    )
    with pytest.raises(StateError, match="saved with another teacher"):
        train(config)
    (dense / "model" / "model.safetensors").write_bytes(written)
    file = tmp_path / "run" / "checkpoints" / "last.pt"
    state = checkpoints.load(file)
    for wrong in (None, {}, state["distillation"] | {"copy": {"1.weight": torch.zeros(1)}}):
        checkpoints.save(file, state | {"distillation": wrong})
        with pytest.raises(StateError):
            train(config)
    with pytest.raises(ConfigError, match=r"distillation.logits = 2.0: the existing run has 1.0"):
        train(toy.config(tmp_path / "run", distillation=DistillationConfig(str(dense), logits=2.0), checkpoint_every=3))
    checkpoints.save(file, state)
    assert math.isfinite(train(config)["loss"])
