"""Two processes learn what one does."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import toy
from nmlearn.lab.train import OptimConfig, recipe, run_files, train
from places import SUPPORT
from processes import free_port, start


def torchrun(path: Path) -> None:
    """Train by a recipe in two processes over gloo, as a user does."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    program = [str(SUPPORT / "toy.py"), str(path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launcher, *program], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr


def forked(path: Path) -> None:
    """The same, started faster."""
    start(2, toy.rank, 2, free_port(), path)


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("method", "launch"), [("lbc", forked), pytest.param("srste", torchrun, marks=pytest.mark.slow)]
)
def test_two_processes_equal_one(tmp_path: Path, method: str, launch: Callable[[Path], None]) -> None:
    toy.register()
    optim = OptimConfig(lr=0.05, clip_norm=1.0)
    one = toy.config(tmp_path / "one", method, "toy-mlp", accumulate=2, ema=0.9, optim=optim)
    alone = train(one)
    run_files.write_text(tmp_path / "recipe.yaml", recipe.dumps(replace(one, out=str(tmp_path / "two"))))
    launch(tmp_path / "recipe.yaml")
    for name in ("model.safetensors", "average.safetensors"):
        left, right = (load_file(tmp_path / run / "model" / name) for run in ("one", "two"))
        for key, value in left.items():
            torch.testing.assert_close(value, right[key], rtol=0, atol=1e-6)
    together = run_files.read_json(tmp_path / "two" / "summary.json")
    assert together["accuracy"] == alone["accuracy"]
    assert together["loss"] == pytest.approx(alone["loss"], abs=1e-5)
    lines = (tmp_path / "two" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == len((tmp_path / "one" / "metrics.jsonl").read_text().splitlines())
