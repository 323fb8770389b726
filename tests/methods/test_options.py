"""The checks of options that data sources, models and methods share."""

from __future__ import annotations

import pytest

from nmlearn import methods
from nmlearn.errors import ConfigError, check_name, check_type
from nmlearn.lab import data, models


@pytest.mark.parametrize(
    ("value", "annotation"),
    [(3, "int"), (3, "float"), (0.5, "float"), (None, "float | None"), ("a", "str"), (True, "bool"), (3, "Pattern")],
)
def test_what_fits(value: object, annotation: str) -> None:
    check_type("here", value, annotation)


@pytest.mark.parametrize(
    ("value", "annotation", "said"),
    [
        (0.5, "int", "a whole number"),
        (True, "int", "a whole number"),
        (False, "float | None", "a number"),
        ("1", "float", "a number"),
        (None, "float", "a number"),
        (1, "bool", "true or false"),
        (1, "str | None", "text"),
        (float("nan"), "float", "a number that is finite"),
        (float("-inf"), "float | None", "a number that is finite"),
        (1e31, "float", "a number that is finite and at most 1e"),
        pytest.param(10**5000, "float", "a number that is finite", id="long float"),
        pytest.param(10**5000, "int", "a whole number that is finite and at most 9.22e", id="long int"),
        (-(2**63), "int | None", "a whole number that is finite"),
        pytest.param(10**5000, "bool", "true or false", id="long bool"),
    ],
)
def test_what_does_not(value: object, annotation: str, said: str) -> None:
    with pytest.raises(ConfigError, match=f"here: .*must be {said}") as caught:
        check_type("here", value, annotation)
    assert caught.value.given


def test_unknown_names() -> None:
    check_name("here", "end", ["start", "end"], "option")
    with pytest.raises(ConfigError, match=r"there is no such option; did you mean .end.\? known: start, end"):
        check_name("here", "ends", ["start", "end"], "option")
    with pytest.raises(ConfigError, match=r"there is no such option; leave it out"):
        check_name("here", "ends", [], "option")


@pytest.mark.parametrize(
    ("build", "where"),
    [
        (lambda **options: data.load("fashion-mnist", None, **options), "data.options.x"),
        (lambda **options: models.build("resnet8", classes=3, input_shape=(1, 8, 8), **options), "model.options.x"),
        (lambda **options: methods.build("lbc", "2:4", **options), "method.options.x"),
    ],
)
def test_all_three_say_it_alike(build, where: str) -> None:
    with pytest.raises(ConfigError, match=f"{where}: given 'x': there is no such option of .*; .*known: "):
        build(x=1)


def test_a_whole_number_is_a_number() -> None:
    models.build("vit", classes=3, input_shape=(1, 8, 8), patch=4, drop_path=0)
    with pytest.raises(ConfigError, match="give at least 1"):
        models.build("vit", classes=3, input_shape=(1, 8, 8), patch=0)
