"""Command line and recipe files -> configuration dataclasses.

Options and recipes (``--config FILE``) override each other in the order given. :mod:`nmlearn.lab.train.recipe` checks
the result once, and its errors name the option or file that the value came from.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from nmlearn.cli import names
from nmlearn.cli.escapes import Parser
from nmlearn.errors import ConfigError, NMLearnError
from nmlearn.lab.train import recipe
from nmlearn.lab.train.config import CompareConfig, TrainConfig

Config = TypeVar("Config")
Settings = Mapping[str, recipe.Schema]
Place = tuple[str, ...]

# A comparison has its model in `train`, and its own methods and patterns.
SHORT = {f"{above}{group}.name": f"--{group}" for group in ("data", "model", "optim") for above in ("", "train.")}
SHORT |= {"method.name": "--method", "method.pattern": "--pattern"}


def parse(
    kind: type[Config], command: str, arguments: list[str], description: str, hidden: tuple[str, ...] = ()
) -> Config:
    """The configuration that a command line asks for; ``--help`` and ``--print_config`` print and exit.

    Args:
        kind: the configuration's dataclass.
        command: the command's name.
        arguments: what follows the command.
        description: what the command does, for its help.
        hidden: options that the command accepts, because recipes have them, and ignores.

    Raises:
        ConfigError: an unknown option or key, or a value that does not fit.
    """
    known = recipe.settings(kind)
    given = _given(_parser(kind, known, f"nmlearn {command}", description, hidden, arguments), known, arguments)
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    methods: list[Any] = [known.get("methods", {}).get("default")]
    for place, schema, text in given.laid:
        for each, value in [(place, _value(place, schema, text))] if place else _flat(_recipe(kind, text), known):
            _put(values, each, value)
            sources[".".join(each)] = "--" if place else f"{text}: "
            methods += [value] if each == ("methods",) else []
    _narrow(values, methods)
    try:
        config = recipe.build(kind, values)
        names.check(config)
    except NMLearnError as error:
        key = max((each for each in sources if error.where.startswith(each)), key=len, default="")
        where = sources.get(key, "") + error.where
        raise type(error)(where=where, given=error.given, wrong=error.wrong, fix=error.fix) from error
    if given.print_config:
        sys.stdout.write(recipe.dumps(config))
        raise SystemExit(0)
    return config


def _parser(
    kind: type, known: Settings, program: str, description: str, hidden: tuple[str, ...], arguments: list[str]
) -> argparse.ArgumentParser:
    usage = f"{program} [--config RECIPE.yaml] [OPTIONS]"
    parser = Parser(program, usage, description, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--print_config", action="store_true", help="Print the resulting recipe and exit.")
    _add(parser, ["--config"], (), {}, help="YAML file that sets any of the options below.", metavar="RECIPE.yaml")
    groups = {"": parser.add_argument_group((kind.__doc__ or "").rstrip("."))}
    for key, schema in known.items():
        if "properties" in schema:
            groups[key] = parser.add_argument_group(schema.get("description", key).rstrip("."))
            continue
        above, _, name = key.rpartition(".")
        options = [f"--{key}", *filter(None, [SHORT.get(key)])]
        about = argparse.SUPPRESS if key in hidden else _about(schema)
        _add(groups[above], options, (*key.split("."),), schema, help=about, metavar=name.upper())
        inside = {each.partition("=")[0] for each in arguments if each.startswith(f"--{key}.")}
        for option in inside if "additionalProperties" in schema else ():
            place, inner = _entry(option.removeprefix(f"--{key}."), schema["additionalProperties"])
            _add(parser, [option], (*key.split("."), *place), inner, help=argparse.SUPPRESS)
    return parser


def _add(group: Any, options: list[str], place: Place, schema: recipe.Schema, **looks: str) -> None:
    """Add an option whose values are collected in command-line order, with their place and schema."""
    kept = {"dest": "laid", "action": "append", "default": []}
    group.add_argument(*options, **kept, type=lambda text: (place, schema, text), **looks)


def _about(schema: recipe.Schema) -> str:
    default = schema.get("default", {})
    text = default if isinstance(default, str) else json.dumps(default)
    return f"{schema.get('description', '')} ({recipe.wanted(schema)}; default: {text})".replace("%", "%%")


def _entry(name: str, schema: Any) -> tuple[Place, recipe.Schema]:
    """The keys of an entry of a mapping (globs have dots; nested mappings have two keys), and its schema."""
    if schema is True:  # anything
        return (name,), {}
    first, dot, rest = name.partition(".")
    if dot and "additionalProperties" in schema:
        return (first, rest), {}
    return (name,), recipe.single(schema)


def _given(parser: argparse.ArgumentParser, known: Settings, arguments: list[str]) -> argparse.Namespace:
    see = f"{parser.prog} --help lists all options"
    try:
        given, rest = parser.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        where, wrong = str(error.argument_name), error.message
        raise ConfigError(where=where, given=" ".join(arguments), wrong=wrong, fix=see) from error
    if not rest:
        return given
    option = rest[0].partition("=")[0]
    near = recipe.nearest(option.lstrip("-"), [key for key, schema in known.items() if "properties" not in schema])
    hint = f"did you mean {' or '.join(f'--{key}' for key in near)}? " if near else ""
    wrong = "unknown option" if option.startswith("-") else "an argument without an option before it"
    raise ConfigError(where="command line", given=option, wrong=wrong, fix=hint + see)


def _value(place: Place, schema: recipe.Schema, text: str) -> Any:
    """An option's value: plain text for text settings, YAML for all others."""
    if schema.get("type") != "string":
        return recipe.loads(text, f"--{'.'.join(place)}")
    return None if "null" in schema and text in ("null", "~") else text


def _flat(values: dict[str, Any], known: Settings, above: Place = ()) -> Iterator[tuple[Place, Any]]:
    """The settings in nested mappings, each with its keys."""
    for name, value in values.items():
        place = (*above, name)
        if isinstance(value, dict) and "properties" in known.get(".".join(place), {}):
            yield from _flat(value, known, place)
        else:
            yield place, value


def _put(values: dict[str, Any], place: Place, value: Any) -> None:
    for key in place[:-1]:
        values = values.setdefault(key, {})
        if not isinstance(values, dict):
            return  # the check will report that a mapping is required
    values[place[-1]] = value


def _narrow(values: dict[str, Any], methods: list[Any]) -> None:
    """Drop the options of methods that an earlier list of methods names and the last one does not."""
    options = values.get("options")
    if isinstance(options, dict) and isinstance(methods[-1], list):
        earlier = {name for each in methods if isinstance(each, list) for name in each if isinstance(name, str)}
        dropped = earlier - {name for name in methods[-1] if isinstance(name, str)}
        values["options"] = {name: value for name, value in options.items() if name not in dropped}


def _recipe(kind: type, path: str) -> dict[str, Any]:
    """The contents of a recipe, unless its unknown keys belong to the other command's recipes."""
    values = recipe.load(path)
    other, command = (TrainConfig, "train") if issubclass(kind, CompareConfig) else (CompareConfig, "compare")
    own, others = ({field.name for field in dataclasses.fields(each)} for each in (kind, other))
    unknown = values.keys() - own
    if unknown and unknown <= others:
        given, fix = f"the keys {', '.join(sorted(unknown))}", f"nmlearn {command} --config {path}"
        raise ConfigError(where=path, given=given, wrong=f"this is a recipe for nmlearn {command}", fix=fix)
    return values
