"""Names that are refused before torch is imported."""

from __future__ import annotations

import subprocess
import sys

import pytest

from nmlearn.cli import names
from nmlearn.lab.data import DATASETS
from nmlearn.lab.models import MODELS, external
from nmlearn.methods import METHODS


def test_the_names_are_those_of_the_registries() -> None:
    assert [*names.methods()] == [*METHODS]
    # Other tests may have added toys to these two.
    assert [name for name in DATASETS if not name.startswith("toy")] == names.datasets()
    own = [name for name in MODELS if not name.startswith("toy")]
    assert [*own, *(f"{source}:..." for source in external.SOURCES)] == names.models()


@pytest.mark.parametrize(
    ("words", "where", "near"),
    [
        (["train", "--model", "resnet81"], "--model.name", "resnet8"),
        (["train", "--method", "lcb"], "--method.name", "lbc"),
        (["plan", "--data", "fashon-mnist"], "--data.name", "fashion-mnist"),
        (["compare", "--methods", "[dense, lcb]"], "--methods", "lbc"),
        (["compare", "--model", "resnet81"], "--train.model.name", "resnet8"),
    ],
)
def test_a_misspelt_name_is_answered_without_torch(words: list[str], where: str, near: str) -> None:
    code = f"""
import sys
from nmlearn.cli import main
from nmlearn.errors import ConfigError
try:
    main(["--debug", *{words!r}])
except ConfigError as error:
    print(error.where, error.fix)
print("torch" in sys.modules or "numpy" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    said, imported = done.stdout.splitlines()
    assert said.startswith(f"{where} did you mean '{near}'?") and imported == "False"


def test_models_of_other_packages_are_left_to_them() -> None:
    words = ["train", "--model", "timm:resnet10t", "--print_config"]
    done = subprocess.run([sys.executable, "-m", "nmlearn", *words], capture_output=True, text=True, check=True)
    assert "timm:resnet10t" in done.stdout
