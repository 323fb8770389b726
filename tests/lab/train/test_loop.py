"""The loop: what it learns, what it writes, and that a killed run resumes to the same bits."""

from __future__ import annotations

import contextlib
import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import toy
from nmlearn.errors import ConfigError, NMLearnError, PlanError, StateError
from nmlearn.lab.train import (
    DataConfig,
    MethodConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
    checkpoints,
    optim,
    run_files,
    train,
)
from nmlearn.lab.train.folder import RunFolder
from nmlearn.lab.train.journal import Journal

TIMES = ("seconds", "examples_per_second")


@pytest.fixture(autouse=True)
def _toys() -> None:
    toy.register()


def events(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]


def same_model(a: Path, b: Path, name: str = "model.safetensors") -> bool:
    left, right = load_file(a / "model" / name), load_file(b / "model" / name)
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


def test_a_run_folder_is_complete(tmp_path: Path) -> None:
    summary = train(toy.config(tmp_path / "run", ema=0.9))
    folder = tmp_path / "run"
    assert {path.name for path in folder.iterdir()} == {
        "config.yaml", "env.json", "plan.json", "metrics.jsonl", "summary.json", "checkpoints", "model", ".lock"
    }  # fmt: skip
    assert json.loads((folder / "summary.json").read_text()) == summary
    assert summary["accuracy"] > 0.8
    assert summary["density"] == 0.5
    assert (summary["method"], summary["pattern"], summary["seed"], summary["epochs"]) == ("lbc", "2:4", 0, 3)
    kinds = [event["event"] for event in events(folder)]
    assert kinds[0] == "start" and kinds[-1] == "final"
    assert kinds.count("eval") == 3
    sparsity = [event for event in events(folder) if event["event"] == "sparsity"]
    assert (sparsity[0]["density"], sparsity[-1]["density"]) == (1.0, 0.5)
    assert sum(event["mask_change"] for event in sparsity) == pytest.approx(0.5)
    assert not list(folder.rglob("*.partial"))


def test_the_saved_model_holds_its_pattern(tmp_path: Path) -> None:
    train(toy.config(tmp_path, ema=0.9))
    for name in ("model.safetensors", "average.safetensors"):
        weight = load_file(tmp_path / "model" / name)["3.weight"]
        assert int((weight != 0).unflatten(1, (-1, 4)).sum(2).max()) == 2


@pytest.mark.parametrize("step", [1, 4, 8, 11, 18])
@pytest.mark.parametrize("method", ["lbc", "srste"])
def test_a_killed_run_ends_with_the_same_bits(tmp_path: Path, method: str, step: int) -> None:
    more = {"checkpoint_every": 3, "ema": 0.9, "data": DataConfig("toy", options={"noise": 0.3})}
    whole, killed = toy.config(tmp_path / "whole", method, **more), toy.config(tmp_path / "killed", method, **more)
    expected = train(whole)
    with pytest.raises(toy.Killed):
        train(killed, toy.kill_after(step))
    assert not (tmp_path / "killed" / "summary.json").exists()
    found = train(killed)
    assert same_model(tmp_path / "whole", tmp_path / "killed")
    assert same_model(tmp_path / "whole", tmp_path / "killed", "average.safetensors")
    assert {k: v for k, v in found.items() if k not in TIMES} == {k: v for k, v in expected.items() if k not in TIMES}
    assert [e for e in events(tmp_path / "killed") if e["event"] != "start"] == [
        e for e in events(tmp_path / "whole") if e["event"] != "start"
    ]


def test_killed_twice_and_between_writing_and_checkpoint(tmp_path: Path) -> None:
    more = {"checkpoint_every": 5, "accumulate": 2}
    train(toy.config(tmp_path / "whole", **more))
    killed = toy.config(tmp_path / "killed", **more)
    for step in (9, 13):
        with pytest.raises(toy.Killed):
            train(killed, toy.kill_after(step))
    with open(tmp_path / "killed" / "metrics.jsonl", "a") as file:
        file.write('{"event": "tra')  # what a kill in the middle of a line leaves
    train(killed)
    assert same_model(tmp_path / "whole", tmp_path / "killed")
    starts = [event for event in events(tmp_path / "killed") if event["event"] == "start"]
    assert [(event["step"], event["resumed"]) for event in starts] == [(0, False), (5, True), (10, True)]


def test_resume_from_another_folder_and_anew(tmp_path: Path) -> None:
    first = toy.config(tmp_path / "first", checkpoint_every=4)
    with pytest.raises(toy.Killed):
        train(first, toy.kill_after(9))
    train(replace(first, out=str(tmp_path / "second"), resume=str(tmp_path / "first")))
    train(replace(first, resume="none"))
    assert same_model(tmp_path / "first", tmp_path / "second")
    assert events(tmp_path / "second")[0]["step"] == 8
    assert [event["step"] for event in events(tmp_path / "first") if event["event"] == "start"] == [0]


def test_a_finished_run_is_not_run_again(tmp_path: Path) -> None:
    config = toy.config(tmp_path, epochs=1)
    summary = train(config)

    def never(event: dict[str, Any]) -> None:
        raise AssertionError(event)

    assert train(replace(config, log_every=5), never) == summary


def test_other_settings_do_not_go_on_from_a_run(tmp_path: Path) -> None:
    train(toy.config(tmp_path, epochs=1))
    with pytest.raises(ConfigError, match=r"epochs = 2: the existing run has 1"):
        train(toy.config(tmp_path, epochs=2))


def test_a_run_that_saved_nothing_is_in_nobodys_way(tmp_path: Path) -> None:
    with pytest.raises(toy.Killed):
        train(toy.config(tmp_path), toy.kill_after(1))
    assert train(toy.config(tmp_path, epochs=1))["epochs"] == 1


def test_accumulated_parts_are_the_whole_batch(tmp_path: Path) -> None:
    for parts in (1, 4):
        train(toy.config(tmp_path / str(parts), model="toy-mlp", accumulate=parts, optim=OptimConfig(clip_norm=0.5)))
    whole, parts_ = (load_file(tmp_path / name / "model/model.safetensors") for name in "14")
    for key, value in whole.items():
        torch.testing.assert_close(value, parts_[key], rtol=0, atol=1e-5)


@pytest.mark.parametrize("changes", [{"batch_size": 18, "accumulate": 4}, {"batch_size": 101}])
def test_batches_that_do_not_work_out(tmp_path: Path, changes: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="batch_size"):
        train(toy.config(tmp_path, **changes))


def test_a_loss_that_is_not_finite_stops_the_run_and_spares_the_checkpoint(tmp_path: Path) -> None:
    config = toy.config(tmp_path, data=DataConfig("toy", options={"poison": 1}), log_every=4)
    with pytest.raises(StateError) as caught:
        train(config)
    assert "training step 7 (epoch 1.17)" in caught.value.where
    assert "nan" in caught.value.given
    assert "--resume none" in caught.value.fix
    assert checkpoints.load(tmp_path / "checkpoints" / "last.pt")["step"] == 6


def test_same_seed_same_start_for_every_method(tmp_path: Path) -> None:
    losses = []
    for method in ("dense", "srste", "lbc"):
        train(toy.config(tmp_path / method, method, log_every=1, epochs=1))
        losses.append(next(e["loss"] for e in events(tmp_path / method) if e["event"] == "train"))
    assert losses[0] == losses[2]  # LBC computes with all weights in the first step
    assert losses[0] != losses[1]


def test_training_goes_on_from_weights(tmp_path: Path) -> None:
    train(toy.config(tmp_path / "dense", "dense"))
    weights = tmp_path / "dense" / "model" / "model.safetensors"
    model = ModelConfig("toy-conv", weights=str(weights))
    summary = train(toy.config(tmp_path / "oneshot", "oneshot", model))
    assert summary["accuracy"] > 0.9
    sparse = replace(model, weights=str(tmp_path / "oneshot" / "model" / "model.safetensors"))
    assert train(toy.config(tmp_path / "keep", "keep", sparse))["density"] == 0.5


@pytest.mark.parametrize(
    "changes", [{"precision": "bf16"}, {"channels_last": True}, {"optim": OptimConfig("adamw", lr=0.01)}]
)
def test_ways_to_train(tmp_path: Path, changes: dict[str, Any]) -> None:
    summary = train(toy.config(tmp_path, **changes))
    assert summary["accuracy"] > 0.8
    assert summary["density"] == 0.5


@pytest.mark.parametrize(
    ("method", "ratio"),
    [("dense", 1.0), ("oneshot", 0.5), ("srste", (0.5 + 0.5 + 1) / 3)],
    ids=["dense", "oneshot", "srste"],
)
def test_training_flops(tmp_path: Path, method: str, ratio: float) -> None:
    assert train(toy.config(tmp_path, method, epochs=1))["training_flops_ratio"] == pytest.approx(ratio)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*script_method.*:DeprecationWarning")  # torch's own
def test_a_compiled_run_goes_on_too(tmp_path: Path) -> None:
    whole, killed = (toy.config(tmp_path / name, compile=True) for name in ("whole", "killed"))
    train(whole)
    with pytest.raises(toy.Killed):
        train(killed, toy.kill_after(8))
    train(killed)
    assert same_model(tmp_path / "whole", tmp_path / "killed")


def test_a_loss_of_an_evaluation_may_be_infinite(tmp_path: Path) -> None:
    journal = Journal(RunFolder(tmp_path), None, False, 0)
    assert journal.write("eval", 1, loss=math.inf, accuracy=0.5)["loss"] is None
    assert events(tmp_path) == [{"event": "eval", "step": 1, "loss": None, "accuracy": 0.5}]


def test_tensorboard_is_written_when_asked_for(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the tensorboard package is not installed")
    train(toy.config(tmp_path, epochs=1, tensorboard=True))
    assert list((tmp_path / "tensorboard").iterdir())


def test_the_learning_rate_warms_up_and_falls() -> None:
    config = OptimConfig(lr=1.0, warmup_epochs=1)
    rates = [optim.learning_rate(config, step, 10, 30) for step in range(30)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert rates[10] == 1.0
    assert rates[20] == pytest.approx(0.5)
    assert rates[29] == pytest.approx(0.5 * (1 + math.cos(math.pi * 19 / 20)))
    assert optim.learning_rate(replace(config, schedule="constant"), 29, 10, 30) == 1.0
    steps = replace(config, schedule="step", milestones=(2, 2.5))
    falling = [optim.learning_rate(steps, step, 10, 30) for step in (19, 20, 24, 25, 29)]
    assert falling == pytest.approx([1.0, 0.1, 0.1, 0.01, 0.01])
    with pytest.raises(ConfigError, match=r"optim.milestones"):
        replace(config, schedule="step")


def test_vectors_do_not_decay_unless_asked() -> None:
    model = toy.toy_conv(4, (16, 4, 4))
    groups = optim.build(model, OptimConfig(weight_decay=0.1)).param_groups
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    assert all(p.ndim == 1 for p in groups[1]["params"])
    groups = optim.build(model, OptimConfig(weight_decay=0.1, decay_norms_and_biases=True)).param_groups
    assert [group["weight_decay"] for group in groups] == [0.1, 0.1]


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    run_files.write_text(path, "old")

    def fail(file: Any) -> None:
        file.write(b"half of the n")
        raise toy.Killed

    with pytest.raises(toy.Killed):
        run_files.write_atomic(path, fail)
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("keep", [0, 10, 1000])
def test_a_broken_checkpoint_is_named(tmp_path: Path, keep: int) -> None:
    with pytest.raises(toy.Killed):
        train(toy.config(tmp_path), toy.kill_after(7))
    path = tmp_path / "checkpoints" / "last.pt"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(StateError, match=r"last\.pt"):
        train(toy.config(tmp_path))


def test_weights_of_another_model_are_named(tmp_path: Path) -> None:
    train(toy.config(tmp_path / "a", "dense", model="toy-mlp", epochs=1))
    model = ModelConfig("toy-conv", weights=str(tmp_path / "a/model/model.safetensors"))
    with pytest.raises(Exception, match=r"model\.weights"):
        train(toy.config(tmp_path / "b", model=model))


def test_options_of_data_models_and_methods_name_the_nearest(tmp_path: Path) -> None:
    wrong: list[tuple[TrainConfig, str]] = [
        (toy.config(tmp_path, method=MethodConfig("lbc", options={"ends": 0.4})), "end"),
        (toy.config(tmp_path, model=ModelConfig("toy-conv", options={"dropuot": 0.1})), "dropout"),
        (toy.config(tmp_path, data=DataConfig("fashion-mnist", options={"augmnt": "flip"})), "augment"),
    ]
    for config, near in wrong:
        with pytest.raises(ConfigError, match=near):
            train(config)


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"method": MethodConfig("lbc", options={"end": "abc"})}, "method.options.end"),
        ({"method": MethodConfig("srste", options={"decay": True})}, "method.options.decay"),
        ({"model": ModelConfig("toy-conv", options={"dropout": "abc"})}, "model.options.dropout"),
        ({"model": ModelConfig("toy-conv", options={"dropout": 3})}, "model.options"),
        ({"data": DataConfig("fashion-mnist", options={"mixup": "abc"})}, "data.options.mixup"),
    ],
)
def test_values_of_options_are_checked(tmp_path: Path, changes: dict[str, Any], where: str) -> None:
    with pytest.raises(ConfigError) as caught:
        train(toy.config(tmp_path, **changes))
    assert caught.value.where == where


def test_settings_that_are_refused_leave_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run"
    for changes, where, said in (
        ({"method": MethodConfig("lbc", "2:4", options={"ends": 1})}, "method.options.ends", "no such option"),
        ({"method": MethodConfig("lbc", "3:5")}, "method.pattern", "0.weight: first convolution"),
        ({"batch_size": 101}, "batch_size", "less than one batch"),
        ({"tensorboard": True}, "tensorboard", "cannot be imported"),
    ):
        monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
        with pytest.raises(NMLearnError, match=said) as caught:
            train(toy.config(folder, **changes))
        assert caught.value.where == where and not folder.exists()


def test_a_pattern_that_fits_nothing_names_the_first_layers(tmp_path: Path) -> None:
    with pytest.raises(PlanError) as caught:
        train(toy.config(tmp_path, MethodConfig("lbc", "3:5")))
    assert caught.value.given == "3:5"
    assert "toy-conv would be sparse: 0.weight: first" in caught.value.wrong and "; 3.weight: " in caught.value.wrong


@pytest.mark.parametrize("options", [{}, {"refit": "pcg"}])
def test_a_method_that_calibrates_sees_training_examples(tmp_path: Path, options: dict[str, str]) -> None:
    """A killed run goes on bit for bit; weights that are sparse already keep their zeros."""
    method = MethodConfig("oneshot" if options else "wanda", "2:4", options=options, calibrate=40)
    whole = train(toy.config(tmp_path / "whole", method))
    assert whole["density"] == 0.5
    with pytest.raises(toy.Killed):
        train(toy.config(tmp_path / "killed", method, checkpoint_every=3), toy.kill_after(8))
    train(toy.config(tmp_path / "killed", method, checkpoint_every=3))
    models = [load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "killed")]
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])
    model = ModelConfig("toy-conv", weights=str(tmp_path / "whole" / "model" / "model.safetensors"))
    train(toy.config(tmp_path / "on", method, model, epochs=1))
    on = load_file(tmp_path / "on" / "model" / "model.safetensors")
    assert all(torch.equal(on[name] == 0, tensor == 0) for name, tensor in models[0].items() if tensor.dim() == 4)


def test_one_process_trains_in_a_folder(tmp_path: Path) -> None:
    with RunFolder(tmp_path).locked(), pytest.raises(StateError, match="another process is training here"):
        train(toy.config(tmp_path, epochs=1))
    assert train(toy.config(tmp_path, epochs=1))["epochs"] == 1


def test_a_resumed_run_keeps_what_it_began_on(tmp_path: Path) -> None:
    with pytest.raises(toy.Killed):
        train(toy.config(tmp_path), toy.kill_after(8))
    path = tmp_path / "env.json"
    first = json.loads(path.read_text()) | {"started": "2020-02-02", "source_commit": "before"}
    path.write_text(json.dumps(first))
    for step in (14, None):
        with contextlib.suppress(toy.Killed):
            train(toy.config(tmp_path), toy.kill_after(step) if step else None)
    found = json.loads(path.read_text())
    assert {**found, "resumed": None} == {**first, "resumed": None}
    assert [each["threads"] for each in found["resumed"]] == [1, 1]
    train(toy.config(tmp_path, resume="none"))
    assert "resumed" not in json.loads(path.read_text())


def test_a_run_begun_at_another_ones_checkpoint_goes_on_from_its_own(tmp_path: Path) -> None:
    with pytest.raises(toy.Killed):
        train(toy.config(tmp_path / "first"), toy.kill_after(8))
    config = toy.config(tmp_path / "second", resume=str(tmp_path / "first"))
    steps: list[int] = []

    def listen(event: dict[str, Any]) -> None:
        if event["event"] == "start":
            steps.append(event["step"])
        elif event["event"] == "step" and event["step"] == 14 and len(steps) == 1:
            raise toy.Killed

    with pytest.raises(toy.Killed):
        train(config, listen)
    train(config, listen)
    assert steps == [6, 12]
    train(toy.config(tmp_path / "whole"))
    assert same_model(tmp_path / "second", tmp_path / "whole")
