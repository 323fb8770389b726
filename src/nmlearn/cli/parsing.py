"""Command line and recipe files -> configuration dataclasses, by jsonargparse.

A recipe (``--config FILE``) is checked by :mod:`nmlearn.train.recipe` first, whose errors name the nearest known key;
then jsonargparse lays the command line's own options over it.
"""

from __future__ import annotations

import difflib
import re
from typing import Any, TypeVar

import yaml
from jsonargparse import ArgumentError, ArgumentParser, set_loader, set_parsing_settings

from nmlearn.errors import ConfigError, NMLearnError
from nmlearn.train import recipe

Config = TypeVar("Config")

set_loader("yaml12", recipe.loads, (yaml.YAMLError,))
set_parsing_settings(docstring_parse_attribute_docstrings=True)


def parse(kind: type[Config], command: str, words: list[str], description: str) -> Config:
    """The configuration that a command line asks for; ``--help`` and ``--print_config`` print and exit.

    Args:
        kind: the configuration's dataclass.
        command: the command's name.
        words: what came after it.
        description: what the command does, for its help.

    Raises:
        ConfigError: an unknown option or key, or a value that does not fit.
    """
    for path in _recipes(words):
        recipe.build(kind, recipe.load(path), f"{path}: ")
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
    try:
        parsed = parser.parse_args(words)
        return recipe.build(kind, _nested(parser, parsed))
    except ArgumentError as error:
        raise _explained(error, parser, command) from error


def _nested(parser: Any, parsed: Any) -> dict[str, Any]:
    values = parsed.as_dict()
    values.pop("config", None)
    return values


def _recipes(words: list[str]) -> list[str]:
    """The files given with --config, as two words or with an equals sign."""
    pairs = zip(words, [*words, ""][1:], strict=True)
    return [
        second if first == "--config" else first.removeprefix("--config=")
        for first, second in pairs
        if first == "--config" or first.startswith("--config=")
    ]


def _explained(error: Exception, parser: Any, command: str) -> NMLearnError:
    if isinstance(error.__cause__, NMLearnError):
        return error.__cause__
    text = str(error)
    see = f"nmlearn {command} --help lists all options"
    unknown = re.search(r"unrecognized arguments: (--[^\s=]+)", text)
    if unknown is not None:
        near = difflib.get_close_matches(unknown[1], parser._option_string_actions, n=1)
        fix = f"did you mean {near[0]}? {see}" if near else see
        return ConfigError(where="command line", given=unknown[1], wrong="unknown option", fix=fix)
    misfit = re.match(r'Parser key "(.+?)":\s+(.+?)\.? Got value: (.*)', text, re.DOTALL)
    if misfit is not None:
        where, wrong, given = misfit.groups()
        return ConfigError(
            where=f"--{where}", given=given, wrong=wrong, fix='quote the pattern: "2:4"' if "pattern" in where else see
        )
    return ConfigError(where="command line", given=f"nmlearn {command}", wrong=text, fix=see)
