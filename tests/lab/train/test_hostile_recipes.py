"""Recipes in which anything may stand: each is a configuration, or an error that says what is wrong."""

from __future__ import annotations

import dataclasses
import math
import os
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import toy
from nmlearn import cli
from nmlearn.cli import parsing
from nmlearn.errors import ConfigError, NMLearnError
from nmlearn.lab.train import (
    CompareConfig,
    DataConfig,
    MethodConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
    recipe,
    train,
)
from nmlearn.lab.train.config import DistillationConfig

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


ODD = [10**30, -(10**30), 10**400, -1, 0.5, True, math.nan, math.inf, -math.inf, 1e300, "x", None, [], [None], {}]
SETTINGS = [(kind, key) for kind, key in OPTIONS if "properties" not in recipe.settings(kind)[key]]


def nested_in(key: str, value: Any) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


@pytest.mark.parametrize(("kind", "key"), SETTINGS)
def test_any_value_of_any_setting_is_a_configuration_or_an_error_that_names_it(kind: type, key: str) -> None:
    refused = 0
    for value in ODD:
        try:
            config = recipe.build(kind, nested_in(key, value), "file: ")
        except NMLearnError as error:
            assert error.where.startswith(f"file: {key}") and error.given and error.wrong and error.fix
            refused += 1
        else:
            assert recipe.build(kind, recipe.loads(recipe.dumps(config))) == config
    assert refused > 3


NUMBERS = [(kind, key) for kind, key in SETTINGS if recipe.settings(kind)[key].get("type") in ("integer", "number")]


@pytest.mark.parametrize(("kind", "key"), NUMBERS)
def test_what_no_number_of_a_recipe_can_be(kind: type, key: str) -> None:
    """Nor one that Python code gives: then the error names the setting as its dataclass knows it."""
    group, _, name = key.rpartition(".")
    owners = {"": kind, "train": TrainConfig, "method": MethodConfig, "distillation": DistillationConfig}
    owner = owners.get(group.removeprefix("train."), OptimConfig) if group != "train" else TrainConfig
    for value in (10**30 + 10**29, -(10**30), 10**400, True, math.nan, math.inf, 1e300, "1", [1]):
        with pytest.raises(ConfigError) as caught:
            recipe.build(kind, nested_in(key, value))
        assert caught.value.where == key
        with pytest.raises(ConfigError) as caught:
            owner(**{name: value})
        assert caught.value.where == key.removeprefix("train.")


@pytest.mark.parametrize(
    ("kind", "values", "where"),
    [
        (TrainConfig, {"optim": {"clip_norm": 0}}, "optim.clip_norm"),
        (TrainConfig, {"optim": {"clip_norm": -1}}, "optim.clip_norm"),
        (TrainConfig, {"optim": {"schedule": "step", "milestones": [1, -1]}}, "optim.milestones"),
        (TrainConfig, {"threads": 5000}, "threads"),
        (CompareConfig, {"seeds": [0, -1]}, "seeds"),
        (CompareConfig, {"seeds": [10**30]}, "seeds"),
        (CompareConfig, {"train": {"seed": 10**30}}, "train.seed"),
        (CompareConfig, {"train": {"optim": {"lr": -1}}}, "train.optim.lr"),
        (CompareConfig, {"train": {"method": {"rules": {"*": "4:2"}}}}, "train.method.rules['*']"),
    ],
)
def test_numbers_without_a_meaning(kind: type, values: dict[str, Any], where: str) -> None:
    with pytest.raises(NMLearnError) as caught:
        recipe.build(kind, values)
    assert caught.value.where == where


@pytest.mark.parametrize("made", [TrainConfig, DataConfig, ModelConfig, MethodConfig, OptimConfig, CompareConfig])
def test_python_values_of_other_types_are_named(made: type) -> None:
    for field in dataclasses.fields(made):
        for value in (object(), b"x", 3 + 1j, {1, 2}):
            with pytest.raises(NMLearnError) as caught:
                made(**{field.name: value})
            assert caught.value.where.endswith(field.name)


@pytest.mark.parametrize("seed", [0, 2**63 - 1])
def test_the_ends_of_what_a_seed_can_be(seed: int, tmp_path: Path) -> None:
    toy.register()
    assert train(toy.config(tmp_path, seed=seed, epochs=1))["accuracy"] > 0


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
