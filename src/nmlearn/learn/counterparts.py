"""Which modules of a student are compared, and which of a teacher with them."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterable, Mapping
from typing import NoReturn

from torch import nn

from nmlearn.errors import ConfigError
from nmlearn.model.names import plain_name, unwrap

_SHOWN = 6


def modules(model: nn.Module) -> dict[str, nn.Module]:
    """All modules that may be called, by plain qualified name; of one inside a wrapper, the wrapper."""
    found: dict[str, nn.Module] = {}
    for name, module in unwrap(model).named_modules():
        if type(module).forward is not nn.Module.forward:  # lists of modules are not called
            found.setdefault(plain_name(name), module)
    return found


def chosen(model: nn.Module, globs: Iterable[str]) -> dict[str, list[str]]:
    """The names of the modules that globs mean.

    A glob is matched against a module's whole name, or what is behind any dot in it, and takes the outermost that
    match: "layer.*" takes ``encoder.layer.0`` and nothing inside it. Of several globs for a module the last takes it.

    Raises:
        ConfigError: a glob takes none.
    """
    names = modules(model)
    taken = {glob: _outermost([name for name in names if _matches(glob, name)]) for glob in globs}
    for glob, some in taken.items():
        if not some:
            fix = f"names look like {_shown(filter(None, names))}"
            raise ConfigError(where="hidden", given=repr(glob), wrong="it matches no module of the model", fix=fix)
    last = {name: glob for glob, some in taken.items() for name in some}
    return {glob: [name for name in names if last.get(name) == glob] for glob in taken}


def counterparts(names: Iterable[str], teacher: nn.Module) -> dict[str, nn.Module]:
    """The teacher's module for each of the student's: what is left of the name without its first parts is the same.

    As many parts as possible are the same, and the others are the same for all modules: ``bert.encoder.layer.0`` is
    ``encoder.layer.0`` in a teacher without a head, ``model.encoder.layer.0`` in one with a wrapper.

    Raises:
        ConfigError: the teacher does not have them, or has several that fit.
    """
    names, found = list(names), modules(teacher)
    if not names:
        return {}
    split = [name.split(".") for name in names]
    shortest = min(map(len, split), default=0)
    for dropped in range(shortest):
        rest = [".".join(parts[dropped:]) for parts in split]
        alike = len({tuple(parts[:dropped]) for parts in split}) == 1
        if not alike or (dropped and split[0][dropped].isdigit()):
            break
        fits = [prefix for prefix in _prefixes(rest[0], found) if all(prefix + each in found for each in rest)]
        if len(fits) == 1 or "" in fits:
            prefix = "" if "" in fits else fits[0]
            return {name: found[prefix + each] for name, each in zip(names, rest, strict=True)}
        if fits:
            _refuse(names, found, f"several of the teacher fit: under {', '.join(map(repr, fits))}")
    _refuse(names, found, "the teacher has no modules of these names")


def check_apart(model: nn.Module, teacher: nn.Module) -> None:
    """Refuse a teacher that would learn with its student.

    Raises:
        ConfigError: it shares parameters that learn.
    """
    learning = {id(p) for p in model.parameters() if p.requires_grad}
    shared = next((name for name, p in teacher.named_parameters() if id(p) in learning), None)
    if shared is not None:
        fix = 'give "copy" for the model as it is at attach, or a network of its own'
        wrong = "it is the model's own and learns with it"
        raise ConfigError(where="teacher", given=f"a network with {shared}", wrong=wrong, fix=fix)


def _matches(glob: str, name: str) -> bool:
    if not name or not glob:  # the model itself, which only "" means
        return name == glob
    return fnmatch.fnmatchcase(name, glob) or fnmatch.fnmatchcase(name, f"*.{glob}")


def _outermost(names: list[str]) -> list[str]:
    taken = set(names)
    return [name for name in names if not any(name[:i] in taken for i, sign in enumerate(name) if sign == ".")]


def _prefixes(rest: str, found: Mapping[str, nn.Module]) -> list[str]:
    """What stands before a name in the names that end with it."""
    return [name.removesuffix(rest) for name in found if name == rest or name.endswith(f".{rest}")]


def _refuse(names: list[str], found: Mapping[str, nn.Module], wrong: str) -> NoReturn:
    near = difflib.get_close_matches(names[0], filter(None, found), n=_SHOWN, cutoff=0.0)
    fix = f"the nearest of its {len(found)} names are {', '.join(near)}: give one with the same, or other globs"
    raise ConfigError(where="teacher", given=f"to be compared with {_shown(names)}", wrong=wrong, fix=fix)


def _shown(names: Iterable[str]) -> str:
    some = list(names)
    return ", ".join(some[:_SHOWN]) + (f" ... ({len(some)})" if len(some) > _SHOWN else "")
