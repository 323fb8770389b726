"""The examples run as they are."""

import importlib.util
import subprocess
import sys

import pytest

from places import ROOT

EXAMPLES = ROOT / "examples"
SAID = {
    "plain_loop": "finished, 6.25% of the hidden layer left",
    "huggingface_packed": "same logits: True",
    "trainer": "finished: 25% of the queries left, 50% of the values",
    "accelerate_loop": "finished after 128 steps, 50% of the middle left",
    "lightning_fit": "finished, 25.00% of the hidden layer left",
    "timm_train": "finished, at most 50.0% of each of 14 weights left",
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


def test_every_example_is_run():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == SAID.keys()


@pytest.mark.parametrize("name", SAID)
def test_example(name):
    if name in NEEDS and importlib.util.find_spec(NEEDS[name]) is None:
        pytest.skip(f"needs the optional package {NEEDS[name]}")
    path = EXAMPLES / f"{name}.py"
    filters = ["error", *(f"ignore:{message}" for message in OTHERS.get(name, []))]
    options = [part for each in filters for part in ("-W", each)]
    done = subprocess.run([sys.executable, *options, path, "1"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert SAID[name] in done.stdout
