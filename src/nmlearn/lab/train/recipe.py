"""Recipes: YAML text <-> configuration dataclasses, without importing torch.

Numbers, booleans and null are read by the rules of YAML 1.2's core schema (section 10.3.2 of its specification): an
unquoted ``2:4`` is text, ``1e-3`` a number, ``yes`` and ``off`` are text, ``010`` is ten. A key given twice is an
error.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import re
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nmlearn.errors import ConfigError
from nmlearn.lab.train.config import check_pattern

Config = typing.TypeVar("Config")

_BOOL = re.compile(r"(?:true|True|TRUE|false|False|FALSE)$")
_NULL = re.compile(r"(?:~|null|Null|NULL|)$")
_INT = re.compile(r"(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$")
_FLOAT = re.compile(
    r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
)
_NAMES = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
_LISTS = {"patterns": "[2:4, 1:4]", "methods": "[dense, lbc]", "input_shape": "[3, 224, 224]"}
# Order matters: an integer also matches the pattern of floats, and the first match wins.
_CORE_SCHEMA = (
    ("bool", _BOOL, "tTfF"),
    ("null", _NULL, ["~", "n", "N", ""]),
    ("int", _INT, "-+0123456789"),
    ("float", _FLOAT, "-+.0123456789"),
)


def loads(text: str) -> Any:
    """The value of YAML text.

    Raises:
        yaml.YAMLError: the text is not YAML, or a key stands in it twice.
    """
    import yaml

    return yaml.load(text, Loader=_loader())


def load(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ConfigError: no such file, not YAML, or not a mapping.
    """
    import yaml

    try:
        value = loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            where="configuration file", given=path, wrong=f"cannot be read: {error}", fix="check the path"
        ) from error
    except yaml.YAMLError as error:
        raise ConfigError(where=str(path), given="this file", wrong=f"not YAML: {error}", fix="correct it") from error
    if not isinstance(value, dict):
        raise ConfigError(
            where=str(path), given=type(value).__name__, wrong="not a mapping of keys", fix="write lines 'key: value'"
        )
    return value


def dumps(config: Any) -> str:
    """YAML text of a configuration dataclass; what a YAML 1.1 reader would take for a number is quoted as well."""
    import yaml

    return yaml.dump(to_dict(config), Dumper=_dumper(), sort_keys=False, allow_unicode=True)


def to_dict(config: Any) -> dict[str, Any]:
    """Plain dicts and lists of a configuration dataclass."""
    return _plain(dataclasses.asdict(config))


def build(kind: type[Config], values: Mapping[str, Any], where: str = "") -> Config:
    """A configuration dataclass from nested mappings.

    Args:
        kind: the dataclass.
        values: field name -> value, mappings for nested dataclasses; fields left out keep their default.
        where: prefix of the keys in errors, e.g. a file's name.

    Raises:
        ConfigError: an unknown key (names the nearest known one), a value that is no mapping where one belongs.
    """
    hints = typing.get_type_hints(kind)
    given = {}
    for key, value in values.items():
        check_key(f"{where}{key}", key, hints)
        given[key] = convert(hints[key], value, f"{where}{key}")
    return kind(**given)


def check_key(where: str, key: object, known: Iterable[str]) -> None:
    """Refuse a key that is not known, naming the nearest one that is.

    Raises:
        ConfigError: the key is not known.
    """
    known = list(known)
    if key in known:
        return
    near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
    fix = f"did you mean {near[0]}?" if near else f"known: {', '.join(known) or 'none'}"
    raise ConfigError(where=where, given=key, wrong="unknown key", fix=fix)


def convert(kind: Any, value: Any, where: str) -> Any:
    """A value of YAML as a field's type: lists become tuples, mappings dataclasses.

    Raises:
        ConfigError, PatternError: it does not fit; says in plain words what belongs there.
    """
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, Mapping):
            raise ConfigError(
                where=where,
                given=repr(value),
                wrong="must be a mapping of keys",
                fix="write its keys below it, indented",
            )
        return build(typing.cast(type, kind), value, f"{where}.")
    if isinstance(value, list) and typing.get_origin(kind) in (tuple, typing.Union, types.UnionType):
        value = tuple(value)
    if _fits(kind, value):
        return value
    if "pattern" in where or ".rules" in where:
        _check_patterns(kind, value, where)
    wrong, fix = _said(kind, where)
    raise ConfigError(where=where, given=repr(value), wrong=wrong, fix=fix)


def _check_patterns(kind: Any, value: Any, where: str) -> None:
    """Name the number that should be a pattern, where the value around it is of the right shape."""
    shape = typing.get_origin(kind) or str
    if shape is str or isinstance(value, shape):
        for pattern in value.values() if shape is dict else value if shape is tuple else [value]:
            check_pattern(where, pattern)


def _fits(kind: Any, value: Any) -> bool:
    """Whether a value is of the types that configurations use."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return True
    if origin is typing.Literal:
        return value in inner
    if origin in (typing.Union, types.UnionType):
        return any(_fits(one, value) for one in inner)
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(inner[0], item) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(inner[0], k) and _fits(inner[1], v) for k, v in value.items())
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)


def _said(kind: Any, where: str) -> tuple[str, str]:
    """What a value of a type must be, and what to write."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return "there is no such choice", f"choose from {', '.join(map(str, inner))}"
    if origin in (typing.Union, types.UnionType):
        wrong, fix = _said(next(one for one in inner if one is not type(None)), where)
        return f"{wrong}, or null", fix
    option = where.rpartition(" ")[2]
    if origin is tuple:
        example = _LISTS.get(option.rpartition(".")[2].strip("-"), "[1, 2, 3]")
        return f"must be a list, each {_NAMES[inner[0]]}", f"write a list: {option} '{example}'"
    if origin is dict:
        return "must be a mapping of keys", f"write keys and values: {option} '{{key: value}}'"
    return f"must be {_NAMES[kind]}", f"give {_NAMES[kind]}"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _read_int(loader: Any, node: Any) -> int:
    text = loader.construct_scalar(node)
    base = {"0o": 8, "0x": 16}.get(text[:2], 10)
    return int(text[2:] if base != 10 else text, base)


def _read_mapping(loader: Any, node: Any) -> dict[Any, Any]:
    import yaml

    mapping: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if key in mapping:
            raise yaml.constructor.ConstructorError(None, None, f"the key {key} is there twice", key_node.start_mark)
        mapping[key] = loader.construct_object(value_node, deep=True)
    return mapping


def _write_text(dumper: Any, text: str) -> Any:
    # Between double quotes everything can be escaped; elsewhere YAML takes characters such as U+0085 for line ends.
    style = None if text.isprintable() else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


@functools.cache
def _loader() -> type:
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    Loader.yaml_implicit_resolvers = {}  # YAML 1.1's
    for tag, spelling, first in _CORE_SCHEMA:
        Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", spelling, list(first))
    Loader.add_constructor("tag:yaml.org,2002:int", _read_int)
    Loader.add_constructor("tag:yaml.org,2002:map", _read_mapping)
    return Loader


@functools.cache
def _dumper() -> type:
    import yaml

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True

    Dumper.add_representer(str, _write_text)
    # On top of YAML 1.1's own rules: text that either version takes for something else is quoted.
    for tag, spelling, first in _CORE_SCHEMA:
        Dumper.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", spelling, list(first))
    return Dumper
