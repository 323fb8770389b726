"""The registered names, read from the registries' source text: importing torch to refuse a misspelt one takes seconds.

What is refused here is what the registries would refuse. Once torch is imported they answer quickly themselves, and may
hold names that a program has added.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nmlearn
from nmlearn.errors import check_name

_PACKAGE = Path(nmlearn.__file__).parent


def check(config: Any) -> None:
    """Refuse unknown names of data sets, models and methods in the configuration of a run or a comparison.

    Raises:
        ConfigError: it names the nearest known one.
    """
    if "torch" in sys.modules or not (_PACKAGE / "methods" / "__init__.py").exists():
        return
    train = getattr(config, "train", config)
    above = "" if train is config else "train."
    check_name(f"{above}data.name", train.data.name, datasets(), "data set")
    if ":" not in train.model.name:
        check_name(f"{above}model.name", train.model.name, models(), "model")
    if train is not config:
        chosen = {"methods": config.methods}
    else:
        chosen = {"method.name": [train.method.name]} if hasattr(train, "method") else {}
    for where, given in chosen.items():
        for name in given:
            check_name(where, name, methods(), "method")


def datasets() -> list[str]:
    """The names of the data sets."""
    return _keys("lab/data/__init__.py", "DATASETS")


def models() -> list[str]:
    """The names of our own models, and the sources of others."""
    sources = _keys("lab/models/external.py", "SOURCES")
    return [*_keys("lab/models/__init__.py", "MODELS"), *(f"{source}:..." for source in sources)]


def methods() -> list[str]:
    """The names of the methods: the `name` of each class in the order of imports."""
    files = [node.module for node in _body("methods/__init__.py") if isinstance(node, ast.ImportFrom) and node.module]
    inside = [name.rpartition(".")[2] for name in files if name.startswith("nmlearn.methods.")]
    return [name for file in inside for name in _class_names(f"methods/{file}.py")]


def _body(file: str) -> list[ast.stmt]:
    return ast.parse((_PACKAGE / file).read_text(encoding="utf-8")).body


def _keys(file: str, registry: str) -> list[str]:
    """The keys of a registry, which are literals or constants of its file."""
    body, texts, found = _body(file), {}, []
    for node in body:
        match node:
            case ast.Assign([ast.Name(constant)], ast.Constant(text)):
                texts[constant] = text
            case ast.AnnAssign(ast.Name(name), value=ast.Dict(keys)) if name == registry:
                found = keys
    return [str(key.value if isinstance(key, ast.Constant) else texts[key.id]) for key in found]  # type: ignore[union-attr]


def _class_names(file: str) -> Iterator[str]:
    for kind in _body(file):
        for node in kind.body if isinstance(kind, ast.ClassDef) else ():
            match node:
                case ast.AnnAssign(ast.Name("name"), value=ast.Constant(text)):
                    yield str(text)
