"""Recipes: YAML text <-> configuration dataclasses, without importing torch.

YAML is read by ruamel.yaml and checked against the dataclasses by pydantic, in strict mode and as JSON: lists become
tuples, a number is not accepted as text, and errors name the key. Numbers, booleans and null follow the core schema of
YAML 1.2: an unquoted ``2:4`` is text, ``1e-3`` a number, ``yes`` and ``off`` are text, ``010`` is ten.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import io
import itertools
import json
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from nmlearn.errors import ConfigError, NMLearnError
from nmlearn.lab.train.config import check_pattern

Config = TypeVar("Config")
Schema = dict[str, Any]

LARGEST = 100_000  # values in a recipe; nested aliases can expand to any number
LONGEST = 1 << 20  # bytes of a recipe; ten seconds of parsing
_SHOWN = 80  # characters of a recipe that an error shows
_NAMES = {"string": "text", "integer": "a whole number", "number": "a number", "boolean": "true or false"}
_LISTS = {"patterns": "[2:4, 1:4]", "methods": "[dense, lbc]", "input_shape": "[3, 224, 224]"}
# The rules of section 10.3.2. ruamel.yaml's own also read 1_000, 0b1 and 2026-01-01 as values, and .5e3 as text.
# Order matters: integers also match the pattern for floats, and the first match wins.
_CORE_SCHEMA: list[Any] = [
    (f"tag:yaml.org,2002:{tag}", re.compile(f"(?:{spelling})$"), firsts)
    for tag, spelling, firsts in (
        ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
        ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
        ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
        ("float", r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", "-+.0123456789"),
        ("float", r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", "-+."),
    )
]


def loads(text: str, where: str = "YAML") -> Any:
    """The value of YAML text, in JSON types.

    Args:
        text: YAML 1.2.
        where: the name of the text in errors.

    Raises:
        ConfigError: the text is not YAML, or longer than a MiB, a key occurs twice, or a value has no JSON type.
    """
    given = "this file" if "\n" in text else text if text.isprintable() else repr(text)
    given = given if len(given) <= _SHOWN else f"{given[:_SHOWN]}..."
    if len(text.encode(errors="replace")) > LONGEST:
        wrong = f"longer than {LONGEST:,} bytes, which no recipe is"
        raise ConfigError(where=where, given=given, wrong=wrong, fix="give a recipe")
    reader = _yaml()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of names for aliases that are used again, which YAML allows
            found = reader.load(text)
    except Exception as error:  # a tag that its value does not fit raises anything: KeyError, IndexError ...
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error) or type(error).__name__
        wrong = f"not YAML: {problem.splitlines()[0]}{place}"
        raise ConfigError(where=where, given=given, wrong=wrong, fix="correct it") from error
    return json.loads(_json(found, where))


def load(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ConfigError: there is no such file, or it is not YAML or not a mapping.
    """
    try:
        with open(path, "rb") as file:
            octets = file.read(LONGEST + 1)  # a device has no end
        text = octets.decode(errors="strict" if len(octets) <= LONGEST else "replace")
    except (OSError, ValueError) as error:
        wrong = f"cannot be read: {error}"
        raise ConfigError(where="configuration file", given=path, wrong=wrong, fix="check the path") from error
    value = loads(text, str(path))
    if not isinstance(value, dict):
        given, fix = type(value).__name__, "write lines of the form 'key: value'"
        raise ConfigError(where=str(path), given=given, wrong="not a mapping of keys", fix=fix)
    return value


def dumps(config: Any) -> str:
    """YAML text of a configuration dataclass; text that YAML 1.1 readers would read as a number is quoted too."""
    return written(to_dict(config))


def written(values: Mapping[str, Any]) -> str:
    """The same of nested mappings, such as a part of a recipe."""
    text = io.StringIO()
    _yaml(writes=True).dump(dict(values), text)
    return text.getvalue()


def to_dict(config: Any) -> dict[str, Any]:
    """Plain dicts and lists of a configuration dataclass."""
    return json.loads(_json(dataclasses.asdict(config)))


def build(kind: type[Config], values: Mapping[str, Any], where: str = "") -> Config:
    """A configuration dataclass from nested mappings.

    Args:
        kind: the dataclass.
        values: field name -> value, mappings for nested dataclasses; omitted fields keep their default.
        where: prefix of the keys in errors, e.g. a file's name.

    Raises:
        ConfigError: an unknown key (the nearest known one is named), or a value of the wrong type or out of range.
        PatternError: a pattern that is not N:M.
    """
    from pydantic import ValidationError

    text = _json(values, where)
    try:
        return _adapter(kind).validate_json(text)  # type: ignore[arg-type]
    except ValidationError as error:
        raise _explained(settings(kind), error.errors()[0], where) from None
    except NMLearnError as error:  # by the checks of the dataclasses, which know no file
        place = f"{where}{_whole_key(error.where, settings(kind))}"
        raise type(error)(where=place, given=error.given, wrong=error.wrong, fix=error.fix) from None


def settings(kind: type) -> dict[str, Schema]:
    """The JSON schema of every setting of a configuration, and of every group of settings, by its dotted key."""
    whole = _schema(kind)

    def walk(schema: Schema, prefix: str) -> Iterator[tuple[str, Schema]]:
        for name, field in schema["properties"].items():
            group = whole["$defs"][field["$ref"].rpartition("/")[2]] if "$ref" in field else {}
            yield prefix + name, group | single(field)
            if group:
                yield from walk(group, f"{prefix}{name}.")

    base = kind.__base__  # pydantic finds only the texts under a dataclass's own fields
    inherited = settings(base) if base is not None and dataclasses.is_dataclass(base) else {}
    return {key: inherited.get(key, {}) | schema for key, schema in walk(whole, "")}


def single(schema: Schema) -> Schema:
    """A schema of any one type and null, simplified to that type with "null" set."""
    return schema | schema["anyOf"][0] | {"null": True} if "anyOf" in schema else schema


def wanted(schema: Schema) -> str:
    """The kind of value that a setting needs, as text."""
    if "enum" in schema:
        name = f"one of {', '.join(schema['enum'])}"
    elif "items" in schema:
        name = f"a list, each entry {wanted(schema['items'])}"
    else:
        name = _NAMES.get(schema["type"], "a mapping of keys")
    return f"{name}, or null" if "null" in schema else name


def nearest(key: str, known: Iterable[str]) -> list[str]:
    """The keys that may have been meant: the most similar one, and those with the same last part."""
    known = list(known)
    homes = [each for each in known if each.endswith(f".{key}")]
    return list(dict.fromkeys([*difflib.get_close_matches(key, known, n=1), *homes]))


def _explained(known: Mapping[str, Schema], error: Any, where: str) -> ConfigError:
    """One of pydantic's errors, in four parts."""
    place, key, given = error["loc"], ".".join(map(str, error["loc"])), repr(error["input"])
    setting = max((each for each in known if f"{key}.".startswith(f"{each}.")), key=len, default="")
    wrong, fix = error["msg"].replace("Input should be", "must be"), "give another value"
    if not place:
        where, given, fix = where or "configuration", "these values", "nest fewer values"
    elif error["type"] == "unexpected_keyword_argument":
        return _unknown(str(place[-1]), key[: -len(str(place[-1]))], known, where)
    elif error["type"] == "string_type" and ("pattern" in key or ".rules" in key):
        check_pattern(f"{where}{key}", error["input"])
    elif error["type"] != "finite_number":
        wrong, fix = f"must be {wanted(known[setting])}", _fix(setting, known[setting])
    return ConfigError(where=f"{where}{key}", given=given, wrong=wrong, fix=fix)


def _whole_key(key: str, known: Iterable[str]) -> str:
    """The key that a dataclass names, within the one that contains it: ``train.seed`` in a comparison."""
    base = key.partition("[")[0]
    above = [each.removesuffix(base) for each in known if each.endswith(f".{base}")]
    return key if base in known or not above else above[0] + key


def _unknown(name: str, prefix: str, known: Iterable[str], where: str) -> ConfigError:
    siblings = [rest for key in known if key.startswith(prefix) and "." not in (rest := key.removeprefix(prefix))]
    near = nearest(name, siblings) or nearest(name, known)
    fix = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(siblings)}"
    return ConfigError(where=f"{where}{prefix}{name}", given=name, wrong="unknown key", fix=fix)


def _fix(key: str, schema: Schema) -> str:
    if "items" in schema:
        example = _LISTS.get(key.rpartition(".")[2], "[1, 2, 3]")
        return f"write {key}: {example}, or --{key} '{example}'"
    return "write its keys below it, indented" if "properties" in schema else f"give {wanted(schema)}"


def _json(value: Any, where: str = "") -> bytes:
    """JSON of a value whose size is bounded, whatever aliases it has."""
    try:
        parts = list(itertools.islice(json.JSONEncoder(ensure_ascii=False).iterencode(value), LARGEST + 1))
        if len(parts) <= LARGEST:
            return "".join(parts).encode()
        problem = f"more than {LARGEST} values"
    except (TypeError, ValueError, RecursionError) as error:
        problem = str(error)
    wrong = f"not composed of text, numbers, lists and mappings: {problem}"
    raise ConfigError(where=where or "configuration", given="these values", wrong=wrong, fix="use only these types")


@functools.cache
def _adapter(kind: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


@functools.cache
def _schema(kind: Any) -> Schema:
    schema: Schema = _adapter(kind).json_schema()
    return schema


def _yaml(writes: bool = False) -> Any:
    """A YAML 1.2 reader, or a writer whose output YAML 1.1 readers understand alike."""
    from ruamel.yaml import YAML
    from ruamel.yaml.representer import SafeRepresenter
    from ruamel.yaml.resolver import VersionedResolver, implicit_resolvers

    rules: dict[str, list[Any]] = {}
    old = [rule for versions, *rule in implicit_resolvers if writes and (1, 1) in versions]
    for tag, pattern, firsts in (*_CORE_SCHEMA, *old):
        for first in firsts:
            rules.setdefault(first, []).append((tag, pattern))

    class Resolver(VersionedResolver):
        processing_version = (1, 2)
        versioned_resolver = rules

    class Representer(SafeRepresenter):
        def text(self, data: str) -> Any:
            # Double quotes allow escapes; elsewhere U+0085 and others are line ends.
            return self.represent_scalar("tag:yaml.org,2002:str", data, style=None if data.isprintable() else '"')

        def number(self, data: float) -> Any:
            node = self.represent_float(data)
            if "." not in node.value:
                node.value = node.value.replace("e", ".0e")
            return node

    Representer.add_representer(str, Representer.text)
    Representer.add_representer(float, Representer.number)
    yaml: Any = YAML(typ="safe", pure=True)
    yaml.Resolver, yaml.Representer = Resolver, Representer
    yaml.default_flow_style = yaml.sort_base_mapping_type_on_output = False
    return yaml
