"""Paths that no file can have, given to every command at every place that takes a path: an error in four parts."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch

import toy
from impossible_paths import NAMES
from nmlearn import cli
from nmlearn.cli import console
from nmlearn.lab import bench, data
from nmlearn.lab.train import recipe, train

TOY = ["--data", "toy", "--steps", "0", "--batch_size", "10", "--accelerate", "false"]
# {run} is a finished run, {model} its model, {out} a path that is free, PATH the one that no file can have.
WORDS = {
    ("inspect", "path"): ["inspect", "PATH"],
    ("pack", "source"): ["pack", "PATH", "{out}"],
    ("pack", "target"): ["pack", "{model}", "PATH"],
    ("unpack", "source"): ["unpack", "PATH", "{out}"],
    ("unpack", "target"): ["unpack", "{model}", "PATH"],
    ("import-lbc", "source"): ["import-lbc", "PATH", "{out}"],
    ("import-lbc", "target"): ["import-lbc", "{checkpoint}", "PATH"],
    ("report", "path"): ["report", "PATH"],
    ("report", "out"): ["report", "{run}", "--out", "PATH"],
    ("export", "path"): ["export", "PATH"],
    ("export", "out"): ["export", "{run}", "--out", "PATH"],
    ("bench", "out"): ["bench", "linear", "--pattern", "2:4", "--seconds", "0.01", "--out", "PATH"],
    ("train", "--config"): ["train", "--config", "PATH"],
    ("train", "--out"): ["train", "--config", "{recipe}", "--out", "PATH"],
    ("train", "--model.weights"): ["train", "--config", "{recipe}", "--out", "{out}", "--model.weights", "PATH"],
    ("train", "--model.backbone"): ["train", "--config", "{recipe}", "--out", "{out}", "--model.backbone", "PATH"],
    ("compare", "--config"): ["compare", "--config", "PATH"],
    ("compare", "--out"): ["compare", "--out", "PATH"],
    ("plan", "--config"): ["plan", "--config", "PATH"],
    ("plan", "--write"): ["plan", "--config", "{recipe}", "--parameters", "0.5", "--write", "PATH"],
    ("sparsify", "MODEL"): ["sparsify", "PATH", "a.csv"],
    ("sparsify", "DATA"): ["sparsify", "toy-conv", "PATH"],
    ("sparsify", "--out"): ["sparsify", "toy-conv", *TOY, "--out", "PATH"],
}
WORDS |= {
    (f"train on {name}", "--data.path"): ["train", "--data", name, "--data.path", "PATH"] for name in data.DATASETS
}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A finished run, its recipe, and a checkpoint that import-lbc reads."""
    toy.register()
    folder = tmp_path_factory.mktemp("places")
    train(toy.config(folder / "run", epochs=1))
    (folder / "recipe.yaml").write_text(recipe.dumps(toy.config(folder / "run", epochs=1)))
    scores = torch.eye(2).repeat(2, 1)  # of two groups in each of two rows, for the two combinations in the table
    layer = {"fc.weight": torch.ones(2, 8), "fc.alpha": scores, "fc.index_list": torch.eye(4)[:2]}
    torch.save({"state_dict": layer}, folder / "checkpoint.pt")
    return {name: folder / name for name in ("run", "recipe.yaml", "checkpoint.pt")}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    toy.register()
    monkeypatch.setattr(console.err, "width", 300)
    monkeypatch.setitem(bench.SUITES, "linear", lambda *settings: iter(()))  # measures nothing


@pytest.mark.parametrize("place", WORDS, ids=" ".join)
@pytest.mark.parametrize("name", NAMES)
def test_a_path_that_no_file_can_have(
    place: tuple[str, str], name: str, places: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = {"run": places["run"], "model": places["run"] / "model" / "model.safetensors", "out": tmp_path / "out"}
    known |= {"recipe": places["recipe.yaml"], "checkpoint": places["checkpoint.pt"]}
    words = [str(tmp_path / NAMES[name]) if word == "PATH" else word.format(**known) for word in WORDS[place]]
    assert cli.main(words) == cli.EXIT_ERROR
    shown = capsys.readouterr().err
    assert "to do" in shown and all(character.isprintable() or character == "\n" for character in shown)


def test_the_table_has_every_option_of_a_command_that_is_a_path() -> None:
    modules = {name: importlib.import_module(f"nmlearn.cli.{name.replace('-', '_')}") for name in cli.COMMANDS}
    parsers = {name: module.parser() for name, module in modules.items() if hasattr(module, "parser")}
    found = {(name, each.dest) for name, parser in parsers.items() for each in parser._actions if each.type is Path}
    assert found and found == {place for place in WORDS if place[0] in parsers}
