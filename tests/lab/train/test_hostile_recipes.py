"""Recipes in which anything may stand: each is a configuration, or an error that says what is wrong."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from nmlearn import cli
from nmlearn.cli import parsing
from nmlearn.errors import ConfigError, NMLearnError
from nmlearn.lab.train import CompareConfig, TrainConfig, recipe

BYTES = [b"a: \xff", b"\xfe\xffa", "a: ä".encode("utf-16"), b"\x00", b"\xef\xbb\xbfepochs: 1", b"a: \x80"]
OPTIONS = [(kind, key) for kind in (TrainConfig, CompareConfig) for key in recipe.settings(kind)]
KEYS = sorted({part for _, key in OPTIONS for part in key.split(".")})
SIGNS = [
    *"a1: \n-?[]{},|>'#%@`\t=~\\\x00\u2028\udcff",
    '"',
    "epochs",
    "&x ",
    "*x",
    "!!int",
    "!!bool",
    "!!float",
    "!!",
    "!",
]
SIGNS += ["---", "...", "<<", "0x", "2:4", ".inf"]
numbers = st.integers() | st.floats() | st.sampled_from([10**30, -(10**400), 2**63])
scalars = (
    st.none() | st.booleans() | numbers | st.text(max_size=4) | st.sampled_from(["2:4", "lbc", "dense", "sgd", "toy"])
)
keys = st.sampled_from(KEYS) | st.text(max_size=2)
nested = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4), max_leaves=12
)
texts = st.text(max_size=40) | st.lists(st.sampled_from(SIGNS), max_size=20).map("".join)


def encoded(text: str) -> bytes:
    return text.encode(errors="surrogatepass")


@settings(max_examples=300, deadline=None)
@given(texts)
@example("a: !!bool x")
@example("a: !!int ''")
@example("a: !!float ''")
@example("a: !!null [x]")
@example("? !!float .\n: 1")
@example("a: &x 1\nb: &x 2")
def test_any_text(text: str) -> None:
    try:
        recipe.loads(text, "here")
    except ConfigError as error:
        assert error.where == "here" and len(str(error)) < 700 and "\n" not in str(error)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([TrainConfig, CompareConfig]), st.dictionaries(st.sampled_from(KEYS), nested, max_size=4))
@example(TrainConfig, {"optim": {"lr": float("nan")}})
@example(TrainConfig, {"method": {"rules": {"*": 3}}})
@example(CompareConfig, {"methods": {"lbc": 1}, "options": {"lbc": 2}})
def test_any_values(kind: type, values: dict[str, Any]) -> None:
    try:
        config = recipe.build(kind, values, "file: ")
    except NMLearnError as error:
        assert error.where.startswith("file: ") and error.fix
    else:
        assert recipe.build(kind, recipe.loads(recipe.dumps(config))) == config


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["train", "compare"]),
    texts.map(lambda text: text.encode(errors="surrogatepass")) | st.sampled_from(BYTES),
)
def test_any_file_on_the_command_line(tmp_path: Path, command: str, octets: bytes) -> None:
    """No traceback: exit status 2, or the recipe is printed."""
    path = tmp_path / "recipe.yaml"
    path.write_bytes(octets)
    try:
        assert cli.main([command, "--config", str(path), "--print_config"]) == 2
    except SystemExit as done:
        assert done.code == 0


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(OPTIONS), st.sampled_from(["", "", ".x", ".x.y"]), texts)
def test_any_option(option: tuple[type, str], inner: str, text: str) -> None:
    kind, key = option
    try:
        parsing.parse(kind, "train", [f"--{key}{inner}={text}"], "")
    except NMLearnError as error:
        assert error.fix


@pytest.mark.parametrize("text", ["a: 1\n" + "#" * recipe.LONGEST, "[" * (recipe.LONGEST + 1), "ä" * recipe.LONGEST])
def test_a_file_that_is_too_long_for_a_recipe(tmp_path: Path, text: str) -> None:
    (tmp_path / "long.yaml").write_text(text)
    begun = time.monotonic()
    with pytest.raises(ConfigError, match=r"long.yaml: given .*: longer than 1,048,576 bytes"):
        recipe.load(tmp_path / "long.yaml")
    assert time.monotonic() - begun < 1


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="no such device")
def test_a_device_that_has_no_end() -> None:
    with pytest.raises(ConfigError, match="longer than"):
        recipe.load("/dev/zero")


def test_a_path_with_a_nul() -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        recipe.load("a\0b.yaml")
