"""Configuration: dataclasses, recipes and the number rules of YAML 1.2."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from nmlearn.errors import ConfigError, PatternError
from nmlearn.lab.train import CompareConfig, MethodConfig, OptimConfig, TrainConfig, recipe
from nmlearn.lab.train.folder import difference
from places import ROOT

RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2:4", "2:4"),
        ("1:16", "1:16"),
        ("1e-3", 0.001),
        ("5e-4", 0.0005),
        ("1.", 1.0),
        (".5", 0.5),
        ("010", 10),
        ("0o10", 8),
        ("0x1F", 31),
        ("-3", -3),
        ("1_000", "1_000"),
        ("yes", "yes"),
        ("no", "no"),
        ("on", "on"),
        ("off", "off"),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("2026-01-01", "2026-01-01"),
        ("0b11", "0b11"),
        ("0o7", 7),
        (".5e3", 500.0),
        ("=", "="),
        ("<<", "<<"),
        ("-.inf", float("-inf")),
    ],
)
def test_yaml_values(text: str, value: object) -> None:
    found = recipe.loads(f"key: {text}")["key"]
    assert found == value
    assert type(found) is type(value)


def test_a_key_given_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match=r'duplicate key "epochs".* line 2'):
        recipe.loads("epochs: 1\nepochs: 2\n")


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.from_regex(r"[-+0-9.:eox]+"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(min_size=1), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60)
@given(st.dictionaries(st.text(min_size=1), values, max_size=3))
def test_what_is_written_is_read_back(options: dict[str, object]) -> None:
    config = TrainConfig(method=MethodConfig(options=options))
    text = recipe.dumps(config)
    assert recipe.build(TrainConfig, recipe.loads(text)) == config
    old = YAML(typ="safe", pure=True)
    old.version = (1, 1)  # type: ignore[assignment]
    assert recipe.build(TrainConfig, old.load(text)) == config  # a YAML 1.1 reader gets it right too


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (TrainConfig, "method: {pattern: 124}"),
        (TrainConfig, "method: {rules: {fc: 64}}"),
        (CompareConfig, "patterns: ['2:4', 76]"),
        (CompareConfig, "train: {method: {pattern: 124}}"),
    ],
)
def test_a_number_is_no_pattern(kind: type, text: str) -> None:
    with pytest.raises(ConfigError, match="quote the pattern"):
        recipe.build(kind, recipe.loads(text))


def test_python_users_are_told_the_same() -> None:
    with pytest.raises(ConfigError, match="quote the pattern"):
        MethodConfig(pattern=124)  # type: ignore[arg-type]
    with pytest.raises(PatternError, match=r"method\.rules\['fc'\]"):
        MethodConfig(rules={"fc": "4:2"})


@pytest.mark.parametrize(
    ("text", "near"),
    [
        ("epocs: 3", "epochs"),
        ("method: {patern: '2:4'}", "pattern"),
        ("optim: {weigth_decay: 1}", "weight_decay"),
        ("data: {nam: x}", "name"),
        ("lr: 0.1", "optim.lr"),
        ("method: {lr: 0.1}", "optim.lr"),
        ("pattern: '2:4'", "method.pattern"),
    ],
)
def test_an_unknown_key_names_the_nearest(text: str, near: str) -> None:
    with pytest.raises(ConfigError) as caught:
        recipe.build(TrainConfig, recipe.loads(text), "file.yaml: ")
    assert caught.value.fix == f"did you mean {near}?"
    assert caught.value.where.startswith("file.yaml: ")


@pytest.mark.parametrize(
    "text",
    [
        "epochs: 0",
        "epochs: 1.5",
        "epochs: yes",
        "batch_size: '8'",
        "seed: -1",
        "ema: 1.0",
        "precision: fp16",
        "channels_last: 1",
        "method: lbc",
        "optim: {lr: -1}",
        "optim: {nesterov: true, momentum: 0}",
        "optim: {warmup_epochs: .nan}",
        "optim: {label_smoothing: 1}",
        "optim: {lr: .inf}",
        "optim: {lr: .nan}",
        "optim: {lr: true}",
        "optim: {clip_norm: -.inf}",
        "optim: {schedule: step, milestones: [1, x]}",
        "epochs: 3.0",
        "out: 3",
        "data: {options: [1]}",
        "data: {options: null}",
    ],
)
def test_values_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        recipe.build(TrainConfig, recipe.loads(text))


@pytest.mark.parametrize(
    "text", ["jobs: 0", "methods: []", "seeds: [1, 1]", "patterns: []", "methods: [dense]\noptions: {lbc: {end: 0.4}}"]
)
def test_comparisons_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        recipe.build(CompareConfig, recipe.loads(text))


def test_numbers_are_taken_for_floats() -> None:
    assert recipe.build(TrainConfig, {"optim": {"lr": 1}}).optim.lr == 1


@pytest.mark.parametrize("text", ["[1, 2]", "just text", "a: [", "a: 1\na: 2"])
def test_files_that_are_no_recipe(tmp_path: Path, text: str) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"bad\.yaml"):
        recipe.load(tmp_path / "bad.yaml")


BOMB = "\n".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9) if i else 'x'}]" for i in range(12))


@pytest.mark.parametrize(
    "text",
    [
        "? [a, b]\n: 3",
        "? {a: b}\n: 3",
        f"a: {'[' * 1500}{']' * 1500}",
        "a: &a {b: *a}",
        "a: &a [*a]",
        BOMB,
        "a: !!python/object:os.system x",
        "a: !!set {x}",
        "a: !!binary aGk=",
        "a: !!timestamp 2026-01-01",
        f"a: {'9' * 5000}",
        "a: 1\n---\nb: 2",
        "a: x\x01y",
        'a: "\\ud800"',
    ],
)
def test_what_no_recipe_holds_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^here: "):
        recipe.loads(text, "here")


def test_aliases_are_read() -> None:
    assert recipe.loads("a: &x [1]\nb: *x") == {"a": [1], "b": [1]}


def test_values_nested_too_deep_are_refused() -> None:
    deep: list[object] = []
    for _ in range(500):
        deep = [deep]
    with pytest.raises(ConfigError, match=r"configuration: given these values: .*recursion"):
        recipe.build(TrainConfig, {"data": {"options": {"a": deep}}})


def test_a_missing_recipe(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        recipe.load(tmp_path / "none.yaml")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_right(path: Path) -> None:
    values = recipe.load(path)
    kind = CompareConfig if "methods" in values else TrainConfig
    config = recipe.build(kind, values)
    if isinstance(config, CompareConfig):
        assert config.name == path.stem


def test_the_folder_tells_runs_apart() -> None:
    names = {
        TrainConfig().folder,
        TrainConfig(seed=1).folder,
        TrainConfig(method=MethodConfig(pattern="1:4")).folder,
        TrainConfig(method=MethodConfig("dense")).folder,
    }
    assert len(names) == 4
    assert TrainConfig(out="x").folder == "x"
    assert all(":" not in name for name in names)


def test_only_what_changes_learning_makes_a_difference() -> None:
    before = TrainConfig(out="a")
    free = replace(before, out="b", threads=2, log_every=5, checkpoint_every=7, resume="none")
    assert difference(recipe.to_dict(before), recipe.to_dict(free)) is None
    other = replace(before, optim=OptimConfig(lr=0.2))
    assert difference(recipe.to_dict(before), recipe.to_dict(other)) == "optim.lr"


def test_configuration_imports_no_torch() -> None:
    modules = "nmlearn.lab.train, nmlearn.lab.train.recipe"
    code = f"import sys, {modules}; sys.exit(bool({{'torch', 'pydantic', 'ruamel'}} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
