"""Command line and recipe files -> configuration dataclasses, by jsonargparse.

A recipe (``--config FILE``) is checked by :mod:`nmlearn.lab.train.recipe` first, whose errors name the nearest known
key; then jsonargparse lays the command line's own options over it.
"""

from __future__ import annotations

import argparse
import difflib
import re
import typing
from typing import Any, TypeVar

import yaml
from jsonargparse import ArgumentError, ArgumentParser, set_loader, set_parsing_settings

from nmlearn.errors import ConfigError, NMLearnError
from nmlearn.lab.train import recipe
from nmlearn.lab.train.config import CompareConfig, TrainConfig

GROUPS = ("data", "model", "method", "optim")

Config = TypeVar("Config")

set_loader("yaml12", recipe.loads, (yaml.YAMLError,))
set_parsing_settings(docstring_parse_attribute_docstrings=True)


def parse(kind: type[Config], command: str, words: list[str], description: str, hidden: tuple[str, ...] = ()) -> Config:
    """The configuration that a command line asks for; ``--help`` and ``--print_config`` print and exit.

    Args:
        kind: the configuration's dataclass.
        command: the command's name.
        words: what came after it.
        description: what the command does, for its help.
        hidden: options that the command takes, for the sake of recipes, and makes nothing of.

    Raises:
        ConfigError: an unknown option or key, or a value that does not fit.
    """
    words = _spelled_out(kind, words)
    for path in _recipes(words):
        values = recipe.load(path)
        _refuse_other_command(kind, path, values)
        recipe.build(kind, values, f"{path}: ")
    parser = _parser(kind, command, description, hidden)
    try:
        values = parser.parse_args(words).as_dict()
    except ArgumentError as error:
        raise _explained(error, kind, parser, command, words) from error
    values.pop("config", None)
    return recipe.build(kind, values)


def _parser(kind: type, command: str, description: str, hidden: tuple[str, ...]) -> Any:
    parser = ArgumentParser(
        prog=f"nmlearn {command}",
        usage=f"nmlearn {command} [--config RECIPE.yaml] [OPTIONS]",
        description=description,
        parser_mode="yaml12",
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("--config", action="config", help="A recipe: a YAML file with any of the options below.")
    parser.add_class_arguments(kind)
    for action in list(parser._actions):
        if type(action).__name__ == "_ActionConfigLoad":
            # --data FILE and the like, which would go past the checks of recipes.
            for word in action.option_strings:
                del parser._option_string_actions[word]
            parser._remove_action(action)
        elif action.dest in hidden:
            action.help = argparse.SUPPRESS
    return parser


def _spelled_out(kind: type, words: list[str]) -> list[str]:
    """The words with ``--model X`` as ``--model.name X``, likewise for data, method and optim, and ``--pattern X``.

    A comparison has its models in ``train``, and methods and patterns of its own.
    """
    compares = issubclass(kind, CompareConfig)
    prefix = "train." if compares else ""
    short = {f"--{group}": f"--{prefix}{group}.name" for group in GROUPS if not (compares and group == "method")}
    if not compares:
        short["--pattern"] = "--method.pattern"
    spelled = []
    for word in words:
        option, equals, value = word.partition("=")
        spelled.append(short.get(option, option) + equals + value)
    return spelled


def _refuse_other_command(kind: type, path: str, values: dict[str, Any]) -> None:
    """Say so when a recipe's unknown keys are those of the other command's recipes."""
    other, command = (TrainConfig, "train") if issubclass(kind, CompareConfig) else (CompareConfig, "compare")
    unknown = values.keys() - typing.get_type_hints(kind).keys()
    if unknown and unknown <= typing.get_type_hints(other).keys():
        raise ConfigError(
            where=path,
            given=f"the keys {', '.join(sorted(unknown))}",
            wrong=f"this is a recipe for nmlearn {command}",
            fix=f"nmlearn {command} --config {path}",
        )


def _recipes(words: list[str]) -> list[str]:
    """The files given with --config, as two words or with an equals sign."""
    pairs = zip(words, [*words, ""][1:], strict=True)
    return [
        second if first == "--config" else first.removeprefix("--config=")
        for first, second in pairs
        if first == "--config" or first.startswith("--config=")
    ]


def _explained(error: Exception, kind: type, parser: Any, command: str, words: list[str]) -> NMLearnError:
    if isinstance(error.__cause__, NMLearnError):
        return error.__cause__
    text = str(error)
    see = f"nmlearn {command} --help lists all options"
    unknown = re.search(r"unrecognized arguments: (\S+)", text)
    if unknown is not None:
        option = unknown[1].partition("=")[0]
        near = difflib.get_close_matches(option, parser._option_string_actions, n=1) if option[0] == "-" else []
        fix = f"did you mean {near[0]}? {see}" if near else see
        wrong = "unknown option" if option[0] == "-" else "a word without an option before it"
        return ConfigError(where="command line", given=option, wrong=wrong, fix=fix)
    misfit = re.match(r'Parser key "(.+?)"', text)
    given = _given(words, misfit[1]) if misfit else None
    if misfit is None or given is None:
        return ConfigError(where="command line", given=f"nmlearn {command}", wrong=text, fix=see)
    try:  # recipes are told in plain words, and take the same types
        recipe.convert(_type_at(kind, misfit[1]), recipe.loads(given), f"--{misfit[1]}")
    except NMLearnError as plain:
        return plain
    except (KeyError, yaml.YAMLError):
        pass
    return ConfigError(where=f"--{misfit[1]}", given=given, wrong=text, fix=see)


def _given(words: list[str], key: str) -> str | None:
    """What the words give an option; the last one counts."""
    found = None
    for word, after in zip(words, [*words[1:], ""], strict=True):
        option, equals, value = word.partition("=")
        if option == f"--{key}":
            found = value if equals else after
    return found


def _type_at(kind: Any, key: str) -> Any:
    """The type of a dotted key."""
    for part in key.split("."):
        kind = typing.get_type_hints(kind)[part]
    return kind
