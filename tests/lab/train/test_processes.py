"""Two processes learn what one does."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import toy
from nmlearn.lab.train import OptimConfig, TrainConfig, files, recipe, train
from places import SUPPORT


def torchrun(config: TrainConfig, path: Path) -> None:
    """Train in two processes over gloo."""
    files.write_text(path, recipe.dumps(config))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launcher, str(SUPPORT / "toy.py"), str(path)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.distributed
@pytest.mark.parametrize("method", ["lbc", pytest.param("srste", marks=pytest.mark.slow)])
def test_two_processes_equal_one(tmp_path: Path, method: str) -> None:
    toy.register()
    optim = OptimConfig(lr=0.05, clip_norm=1.0)
    one = toy.config(tmp_path / "one", method, "toy-mlp", accumulate=2, ema=0.9, optim=optim)
    alone = train(one)
    torchrun(replace(one, out=str(tmp_path / "two")), tmp_path / "recipe.yaml")
    for name in ("model.safetensors", "average.safetensors"):
        left, right = (load_file(tmp_path / run / "model" / name) for run in ("one", "two"))
        for key, value in left.items():
            torch.testing.assert_close(value, right[key], rtol=0, atol=1e-6)
    together = files.read_json(tmp_path / "two" / "summary.json")
    assert together["accuracy"] == alone["accuracy"]
    assert together["loss"] == pytest.approx(alone["loss"], abs=1e-5)
    lines = (tmp_path / "two" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == len((tmp_path / "one" / "metrics.jsonl").read_text().splitlines())
