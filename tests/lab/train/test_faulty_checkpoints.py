"""A checkpoint that is damaged, or of another training, is an error that says which difference it found."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import dying
import toy
from nmlearn.errors import ConfigError, NMLearnError, StateError
from nmlearn.lab.train import DataConfig, MethodConfig, OptimConfig, checkpoints, train
from nmlearn.learn import compact


@pytest.fixture(autouse=True)
def _toys() -> None:
    toy.register()


class Stop(BaseException):
    """Stands for the end of the process."""


def stop(event: dict[str, Any]) -> None:
    if event["event"] == "step" and event["step"] == 7:
        raise Stop


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed after its first checkpoint."""
    toy.register()
    folder = tmp_path_factory.mktemp("original") / "run"
    with pytest.raises(Stop):
        train(toy.config(folder), stop)
    return folder


@pytest.fixture
def run(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "run"))


def check_message(error: NMLearnError, *parts: str) -> None:
    text = str(error)
    assert "\n" not in text and len(text) < 700
    assert "weights_only" not in text and "PytorchStreamReader" not in text and "enforce" not in text
    assert error.fix
    for part in parts:
        assert part in text, text


def test_settings_newer_than_the_run_have_their_defaults(run: Path) -> None:
    lines = (run / "config.yaml").read_text().splitlines(keepends=True)
    older = [line for line in lines if "backbone" not in line and "milestones" not in line]
    assert len(older) == len(lines) - 2
    (run / "config.yaml").write_text("".join(older))
    train(toy.config(run))


def test_masks_as_bytes_as_runs_before_wrote_them(run: Path, tmp_path: Path) -> None:
    older = Path(shutil.copytree(run, tmp_path / "older"))
    path = older / "checkpoints" / "last.pt"
    state = torch.load(path, weights_only=True)
    assert lbc(state)["state"]["keep"]["bits"].dtype == torch.uint8
    state["sparsifier"] = compact.unpacked(state["sparsifier"])
    assert lbc(state)["state"]["keep"].dim() == 4
    torch.save(state, path)
    models = []
    for folder in (run, older):
        train(toy.config(folder))
        models.append((folder / "model" / "model.safetensors").read_bytes())
    assert models[0] == models[1]


def test_another_checkpoint_can_be_named_in_place_of_a_damaged_one(run: Path, tmp_path: Path) -> None:
    own, copy = run / "checkpoints" / "last.pt", tmp_path / "copy.pt"
    shutil.copy(own, copy)
    own.write_bytes(own.read_bytes()[:1000])
    train(toy.config(run, resume=str(copy)))


@pytest.mark.parametrize("share", [0, 0.001, 0.1, 0.5, 0.9, 0.999])
def test_a_checkpoint_that_is_cut_short(run: Path, share: float) -> None:
    path = run / "checkpoints" / "last.pt"
    octets = path.read_bytes()
    path.write_bytes(octets[: int(share * len(octets))])
    with pytest.raises(StateError) as caught:
        train(toy.config(run))
    check_message(caught.value, "last.pt", "truncated", "--resume")


def test_a_flipped_bit_is_noticed_wherever_it_matters(run: Path) -> None:
    path = run / "checkpoints" / "last.pt"
    octets, sound = path.read_bytes(), checkpoints.load(path)
    dice, refused = random.Random(0), 0
    for _ in range(120):
        place = dice.randrange(len(octets))
        path.write_bytes(octets[:place] + bytes([octets[place] ^ 1 << dice.randrange(8)]) + octets[place + 1 :])
        try:
            loaded = checkpoints.load(path)
        except StateError as error:
            refused += 1
            check_message(error, "last.pt", "modified")
        else:  # padding, dates and the like
            assert dying.equal(loaded, sound)
    assert refused > 50


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (tmp_path.joinpath("executed").touch, ())

    path = tmp_path / "last.pt"
    cases: list[tuple[Any, str]] = [
        ({"format": 1, "evil": Evil()}, "more than tensors"),
        ([1, 2], "not a training checkpoint"),
        ({"model": {}}, "not a training checkpoint"),
        ({"format": 2, "nmlearn": "9.9"}, "format 2 of nmlearn 9.9"),
        ({"format": 1, "config": {}}, "it lacks step"),
    ]
    for state, message in cases:
        torch.save(state, path)
        with pytest.raises(StateError) as caught:
            checkpoints.load(path)
        check_message(caught.value, "last.pt", message)
    assert not (tmp_path / "executed").exists()
    for there in (tmp_path, tmp_path / "nothing.pt"):
        with pytest.raises(StateError, match="cannot be read"):
            checkpoints.load(there)


OTHERS: list[tuple[dict[str, Any], str]] = [
    ({"model": "toy-mlp"}, "model.name"),
    ({"method": "srste"}, "method.name"),
    ({"method": MethodConfig("lbc", "1:4")}, "method.pattern"),
    ({"method": MethodConfig("lbc", "2:4", {"8.weight": None})}, "method.rules"),
    ({"method": MethodConfig("lbc", "2:4", options={"end": 0.9})}, "method.options"),
    ({"optim": OptimConfig("adamw", lr=0.05)}, "optim.name"),
    ({"optim": OptimConfig(lr=0.06)}, "optim.lr"),
    ({"precision": "bf16"}, "precision"),
    ({"epochs": 4}, "epochs"),
    ({"batch_size": 20}, "batch_size"),
    ({"seed": 1}, "seed"),
    ({"ema": 0.9}, "ema"),
    ({"data": DataConfig("toy", options={"noise": 0.1})}, "data.options"),
]


@pytest.mark.parametrize(("changes", "key"), OTHERS, ids=[f"{key}-{i}" for i, (_, key) in enumerate(OTHERS)])
@pytest.mark.parametrize("elsewhere", [False, True])
def test_other_settings(run: Path, tmp_path: Path, changes: dict[str, Any], key: str, elsewhere: bool) -> None:
    """With the same command, and with --resume from another folder."""
    config = toy.config(tmp_path / "other" if elsewhere else run, **changes)
    with pytest.raises(ConfigError) as caught:
        train(replace(config, resume=str(run)) if elsewhere else config)
    check_message(caught.value, key)


def first(values: dict[str, Any]) -> Any:
    return values[next(iter(values))]


def lbc(state: dict[str, Any]) -> dict[str, Any]:
    return state["sparsifier"]["weights"]["3.weight"]


# The same settings, but another model, optimizer, data or method behind them.
CHANGES: list[tuple[str, Callable[[dict[str, Any]], object], tuple[str, ...]]] = [
    ("a weight is gone", lambda s: s["model"].pop("3.weight"), ("3.weight",)),
    ("a weight is new", lambda s: s["model"].update(more=torch.zeros(2)), ("more",)),
    ("a shape", lambda s: s["model"].update({"3.bias": torch.zeros(8)}), ("3.bias", "[8]", "[16]")),
    ("a dtype", lambda s: s["model"].update({"3.bias": torch.zeros(16).bfloat16()}), ("3.bias", "bfloat16", "float32")),
    ("parameter groups", lambda s: s["optimizer"]["param_groups"].pop(), ("optimizer", "group 1")),
    ("weights in a group", lambda s: s["optimizer"]["param_groups"][0]["params"].pop(), ("group 0", "2 weights")),
    ("another optimizer", lambda s: s["optimizer"]["param_groups"][0].update(betas=1), ("optimizer", "betas")),
    ("more data", lambda s: s["data"].update(train_size=101), ("data", "train_size", "101", "100")),
    ("a method", lambda s: s["sparsifier"].update(method="gradual"), ("method", "gradual", "lbc")),
    ("a sparsifier's format", lambda s: s["sparsifier"].update(format=3), ("format", "3")),
    ("an option", lambda s: s["sparsifier"]["options"].update(end=0.7), ("end", "0.7", "0.5")),
    ("a length", lambda s: s["sparsifier"].update(total_steps=19), ("total_steps", "19", "18")),
    ("a pattern", lambda s: lbc(s).update(pattern="1:4"), ("3.weight", "1:4", "2:4")),
    ("a sparse weight", lambda s: s["sparsifier"]["weights"].pop("3.weight"), ("3.weight",)),
    ("a score's shape", lambda s: lbc(s)["state"].update(score=torch.zeros(2)), ("3.weight score", "(2,)")),
    (
        "a score's dtype",
        lambda s: lbc(s)["state"].update(score=lbc(s)["state"]["score"].double()),
        ("score", "float64"),
    ),
    ("no mask", lambda s: lbc(s)["state"].pop("keep"), ("3.weight keep",)),
    ("no options", lambda s: s["sparsifier"].pop("options"), ("options",)),
    ("no state", lambda s: lbc(s).pop("state"), ("3.weight", "state")),
]


@pytest.mark.parametrize(("change", "parts"), [c[1:] for c in CHANGES], ids=[c[0] for c in CHANGES])
def test_what_the_settings_do_not_tell(
    run: Path, change: Callable[[dict[str, Any]], object], parts: tuple[str, ...]
) -> None:
    path = run / "checkpoints" / "last.pt"
    state = torch.load(path, weights_only=True)
    change(state)
    torch.save(state, path)
    with pytest.raises(StateError) as caught:
        train(toy.config(run))
    check_message(caught.value, *parts)
