"""Training scripts as many people have them, with at most four lines of nmlearn: they resume by their own means.

The programs are in tests/support/loops. The lines that end in ``# nm`` are what nmlearn adds.
"""

from __future__ import annotations

import importlib.util
import os
import runpy
import sys
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from loops.parts import MARK
from nets import same
from places import LOOPS
from processes import apart

# The weights of two or more dimensions that stay dense.
DENSE = {
    "nanogpt": {"wte.weight", "wpe.weight", "lm_head.weight"},
    "imagenet": {"0.0.weight", "5.weight"},
    "timm_train": {"0.0.weight", "5.weight"},
    "torchvision_train": {"0.0.weight", "5.weight"},
    "accelerate_train": {"7.weight"},
    "no_trainer": {"7.weight"},
    "muon": {"7.weight"},
}
STEPS, KILLED = 24, 11  # the last checkpoint is at 8 or 10, in the middle of the schedule


def added(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.endswith(MARK)]


def form(name: str, pattern: str) -> str:
    """The text of a program with a pattern, or without the lines of nmlearn."""
    text = (LOOPS / f"{name}.py").read_text()
    if pattern == "dense":
        return "".join(line for line in text.splitlines(keepends=True) if not line.rstrip().endswith(MARK))
    assert '"2:4"' in text
    return text.replace('"2:4"', f'"{pattern}"')


def run(path: Path, words: list[str]) -> None:
    torch.set_num_threads(1)
    os.environ["ACCELERATE_USE_CPU"] = "true"
    sys.argv = [str(path), *words]
    runpy.run_path(str(path), run_name="__main__")


def results(text: str, out: Path, *words: str) -> dict[str, dict[str, Tensor]]:
    """What a program leaves in a folder: its final weights, and their average where it keeps one."""
    out.mkdir(exist_ok=True)
    path = out.parent / f"{out.name}.py"
    path.write_text(text)
    apart(run, path, ["--steps", str(STEPS), "--out", str(out), *words])
    return {name: torch.load(out / name) for name in ("final.pt", "average.pt") if (out / name).exists()}


def without(weights: dict[str, Tensor], pattern: str) -> set[str]:
    """The names of weights that have more values in a group of inputs than the pattern allows."""
    n, m = map(int, pattern.split(":"))
    wide = {name: w for name, w in weights.items() if w.dim() >= 2}
    return {name for name, w in wide.items() if w.shape[1] % m or int((w.unflatten(1, (-1, m)) != 0).sum(2).max()) > n}


def check(name: str, pattern: str, folder: Path, text: str = "") -> None:
    """Run a program undisturbed, and killed and resumed: it ends with the same bits, which have the pattern."""
    text = text or form(name, pattern)
    whole: dict[str, Any] = results(text, folder / "whole")
    assert "final.pt" in whole
    for weights in whole.values():
        wide = {key for key, w in weights.items() if w.dim() >= 2}
        assert wide > DENSE[name]
        assert without(weights, "2:4" if pattern == "dense" else pattern) == (
            wide if pattern == "dense" else DENSE[name]
        )
    with pytest.raises(BrokenProcessPool):
        results(text, folder / "killed", "--kill-at", str(KILLED))
    assert not (folder / "killed" / "final.pt").exists()
    assert same(results(text, folder / "killed", "--resume", str(folder / "killed")), whole)


def needed(name: str) -> None:
    if name in ("accelerate_train", "no_trainer") and importlib.util.find_spec("accelerate") is None:
        pytest.skip("needs the optional package accelerate")


def test_every_program_is_run():
    assert {path.stem for path in LOOPS.glob("*.py")} - {"parts"} == DENSE.keys()


@pytest.mark.parametrize("name", DENSE)
def test_at_most_four_lines_are_added(name):
    text = form(name, "2:4")
    assert 3 <= len(added(text)) <= 4
    assert not any(word in form(name, "dense") for word in ("nmlearn", "nm.", "sparsifier"))
    assert len(form(name, "dense").splitlines()) == len(text.splitlines()) - len(added(text))


def test_a_killed_run_resumes(tmp_path):
    check("nanogpt", "2:4", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("pattern", ["dense", "2:4", "1:8"])
@pytest.mark.parametrize("name", DENSE)
def test_killed_runs_resume(name, pattern, tmp_path):
    needed(name)
    check(name, pattern, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["torchvision_train", "accelerate_train"])
def test_attach_after_loading(name, tmp_path):
    """These two attach before they load; the same line after it."""
    needed(name)
    text = form(name, "2:4")
    line = next(line for line in added(text) if "attach(" in line)
    first, rest = text.split(f"{line}\n")
    moved = first + rest.replace("    for epoch in range(", f"{line}\n    for epoch in range(", 1)
    assert moved != text
    check(name, "2:4", tmp_path, moved)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["imagenet", "timm_train", "torchvision_train", "accelerate_train"])
def test_a_finished_run_resumes(name, tmp_path):
    """Its last checkpoint is that of the last step: nothing is left to train, and it ends as it did."""
    needed(name)
    ended = results(form(name, "2:4"), tmp_path / "run")
    for path in (tmp_path / "run").glob("*.pt"):
        path.unlink()
    assert same(results(form(name, "2:4"), tmp_path / "run", "--resume", str(tmp_path / "run")), ended)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nanogpt", "torchvision_train"])
def test_without_the_lines_it_resumes_too(name, tmp_path):
    """The script as it was loads the checkpoints of a sparse run."""
    with pytest.raises(BrokenProcessPool):
        results(form(name, "2:4"), tmp_path / "run", "--kill-at", str(KILLED))
    weights = results(form(name, "dense"), tmp_path / "run", "--resume", str(tmp_path / "run"))["final.pt"]
    assert without(weights, "2:4") > DENSE[name]
