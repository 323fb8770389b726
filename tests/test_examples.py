"""The examples run as they are."""

import builtins
import contextlib
import importlib.util
import io
import re
import runpy
import sys
import warnings
from pathlib import Path

import pytest

from places import ROOT
from processes import apart

EXAMPLES = ROOT / "examples"
SAID = {
    "plain_loop": "finished, 6.25% of the hidden layer kept",
    "huggingface_packed": "same logits: True",
    "trainer": "finished: 25% of the queries and 50% of the values kept",
    "accelerate_loop": "finished after 128 steps, 50% of the middle kept",
    "lightning_fit": "finished, 25.00% of the hidden layer kept",
    "timm_train": "finished, at most 50.0% of each of 14 sparse layers kept",
    "lora": "base untouched by the adapter: True; 14 merged weights are 2:4",
}
NEEDS = {
    "huggingface_packed": "transformers",
    "trainer": "accelerate",
    "accelerate_loop": "accelerate",
    "lightning_fit": "lightning",
    "timm_train": "timm",
    "lora": "peft",
}
# What a framework says about itself: the beginnings of the messages, and their types.
OTHERS = {
    "lightning_fit": [
        "`isinstance(treespec, LeafSpec)` is deprecated:FutureWarning",
        "The 'train_dataloader' does not have many workers:UserWarning",
        "The 'val_dataloader' does not have many workers:UserWarning",
    ],
    "lora": ["`is_gradient_checkpointing` is deprecated:FutureWarning"],  # between peft and transformers
}


def printed(path: Path, ignored: list[str]) -> str:
    """What an example prints, shortened to one round, where all other warnings are errors."""
    for message, kind in (each.rsplit(":", 1) for each in ignored):
        warnings.filterwarnings("ignore", re.escape(message), getattr(builtins, kind))
    sys.argv = [str(path), "1"]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        runpy.run_path(str(path), run_name="__main__")
    return out.getvalue()


def test_every_example_is_run():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == SAID.keys()


@pytest.mark.parametrize("name", SAID)
def test_example(name):
    if name in NEEDS and importlib.util.find_spec(NEEDS[name]) is None:
        pytest.skip(f"needs the optional package {NEEDS[name]}")
    assert SAID[name] in apart(printed, EXAMPLES / f"{name}.py", OTHERS.get(name, []))
