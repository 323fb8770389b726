"""Models as safetensors files, packed or dense: ``nm.save(model, path)`` and ``nm.load(path, model)``.

A dense file is an ordinary safetensors file with the zeros in place. A packed one is described in docs/format.md; its
checksums turn a file that was cut short or changed into an error that names the tensor, never into wrong weights.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from nmlearn.errors import ConfigError
from nmlearn.files.atomic import explained
from nmlearn.files.formats import Encoded, Encoding, container, metadata, pack, unpack
from nmlearn.files.formats.damage import damaged
from nmlearn.files.formats.metadata import INDEX, OURS, VALUES, Contents
from nmlearn.files.selection import check_plan, choose
from nmlearn.files.tensors import fill, plain_state, ties
from nmlearn.model import averages
from nmlearn.model.finite import warn_of_not_finite
from nmlearn.model.moving import warn_of_moving
from nmlearn.model.names import parameters
from nmlearn.model.plan import Plan, Rule, input_axes


@dataclass(frozen=True)
class Stored:
    """How a file stores one tensor: in how many bytes, and its encoding if it is packed."""

    nbytes: int
    encoding: Encoding | None


def save(
    model: Any,
    path: str | os.PathLike[str],
    packed: bool = True,
    patterns: Mapping[str, Rule] | None = None,
    metadata: Mapping[str, str] | None = None,
    expect: Plan | None = None,
) -> None:
    """Write a model or a state dict as a safetensors file, whole or not at all.

    A packed file stores every weight of two or more dimensions whose zeros form an N:M pattern along its inputs as N
    values per group and an index, unless that saves less than a tenth or the pattern seems to be an accident:
    :func:`nmlearn.files.selection.choose`. The rest is stored as it is, and a tied tensor once. :func:`load`
    returns equal bits except for the sign of zeros in packed weights, which ``weight * mask`` leaves behind: they come
    back as +0.0. A dense file stores every name of the state in full, for any reader.

    Args:
        model: a module, or tensors by name; on any device, in any memory layout. Wrappers (DDP, ``AveragedModel`` and
            its subclasses, timm's averages) and other objects with a module in ``module`` are looked through: the file
            has the model's own names, without "module." and counters. Of an accelerated model the dense layers'
            tensors are stored, so that the dense model can load them. A model that a sparsifier is still removing
            weights from is saved with a warning: its zeros are those of the moment. So is one with NaN or infinite
            values, by name.
        path: the file; its folder is created.
        packed: False for a dense file.
        patterns: a glob on a weight's or module's name -> the pattern to pack with, by default found from the zeros;
            None stores dense, a :class:`nmlearn.Grouping` gives the input axis as well; the last match wins.
        expect: a sparsifier's ``plan``, whose patterns the weights must have.
        metadata: text to store alongside the tensors, under your own keys; packing and unpacking keep it.

    Raises:
        StateError: something that the file cannot store: not a tensor, a sharded or quantized one, a reserved name; an
            accelerated layer whose dense weight is not recoverable: a folded batch norm, int8, a semi-structured layer.
            Or names and metadata that are longer than 4 MiB and a sixteenth of the data.
        ViolationError, PatternError: a pattern that the weight breaks, or that does not fit it, by the weight's name.
            A weight that breaks its pattern in ``expect`` is the first of those that do.
        PlanError: a glob that matches nothing; an expected weight that the model does not have.
        WriteError: the system refuses, for lack of space or permission; an existing file is unchanged.
        ConfigError: patterns for a dense file, a path that is a folder, metadata that is not text or under our keys,
            arguments in another order, an average that is a list of tensors.
    """
    model = averages.module(model)
    _check_no_list(model)
    _check_order("nm.save(model, path)", path, isinstance(model, nn.Module | Mapping), model)
    other = dict(metadata or {})
    for key, text in other.items():
        if not container.is_text(key) or not container.is_text(text) or key.startswith(OURS):
            wrong = f"keys and values must be text, and keys that begin with {OURS} are reserved for packed files"
            raise ConfigError(where=f"metadata[{key!r}]", given=f"{text!r:.80}", wrong=wrong, fix="choose another key")
    axes = input_axes(model) if isinstance(model, nn.Module) else {}
    state = plain_state(model)
    warn_of_not_finite(state, parameters(model) if isinstance(model, nn.Module) else None)
    if expect is not None:
        check_plan(state, expect)
    elif packed:
        warn_of_moving(state.values())
    _write(Path(path), state, packed, axes, patterns or {}, other)


def load(path: str | os.PathLike[str], model: nn.Module | None = None) -> dict[str, Tensor]:
    """Read a packed file, or any safetensors file, as a dense state dict.

    Args:
        path: the file.
        model: filled in place if given; the tensors are converted to its own types and devices.

    Returns:
        contiguous CPU tensors by name; those of a packed file in the order in which they were saved. Further names of a
        tied weight come last and are the same tensor.

    Raises:
        FormatError: the file cannot be read or is damaged, or its header is longer than 4 MiB and a sixteenth of the
            data; nothing larger than the file allows is allocated.
        StateError: the file belongs to another model, or contains values that its types do not have: complex, beyond
            their range, fractions for integers. The model is then unchanged.
        ConfigError: arguments in another order.
    """
    _check_order("nm.load(path, model)", path, model is None or isinstance(model, nn.Module), model)
    with container.opened(Path(path)) as file:
        contents = metadata.read(file)
        tensors: dict[str, Tensor] = {}
        for name in contents.checksums or file.entries:
            tensors[name] = _tensor(file, name, contents.checksums.get(name))
            _unpack_when_complete(tensors, name, contents.encodings, str(path))
    tensors |= {name: tensors[target] for name, target in contents.tied.items()}
    if model is not None:
        fill(model, tensors, str(path))
    return tensors


def stored(path: str | os.PathLike[str]) -> dict[str, Stored]:
    """What a file contains, from its header alone; tied names are left out.

    Raises:
        FormatError: the header cannot be read or is damaged.
    """
    with container.opened(Path(path)) as file:
        contents = metadata.read(file)
    parts = {name + suffix for name in contents.encodings for suffix in (VALUES, INDEX)}
    packed = {name: Stored(encoding.nbytes, encoding) for name, encoding in contents.encodings.items()}
    plain = (name for name in contents.checksums or file.entries if name not in parts)
    return packed | {name: Stored(file.entries[name].nbytes, None) for name in plain}


def notes(path: str | os.PathLike[str]) -> dict[str, str]:
    """A file's metadata that does not describe its packing: from :func:`save`, and from other programs.

    Raises:
        FormatError: the header cannot be read or is damaged.
    """
    with container.opened(Path(path)) as file:
        return metadata.read(file).other


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    packed: bool = True,
    patterns: Mapping[str, Rule] | None = None,
) -> None:
    """Write a packed or dense file with the contents of another, keeping other programs' metadata.

    Args and Raises: those of :func:`save` and :func:`load`.
    """
    with container.opened(Path(source)) as file:
        contents = metadata.read(file)
    axes = {name: encoding.grouping.axis for name, encoding in contents.encodings.items()}
    _write(Path(target), plain_state(load(source)), packed, axes, patterns or {}, contents.other)


def _check_no_list(model: object) -> None:
    if (tensors := averages.shadows(model)) is None:
        return
    raise ConfigError(
        where="nm.save",
        given=f"{type(model).__name__} of {len(tensors)} tensors",
        wrong="they are the parameters of a model in their order, without names and without its buffers",
        fix="average.copy_to(model.parameters()) writes them into a model (a copy of it, perhaps): save that",
    )


def _check_order(call: str, path: object, is_model: bool, model: object) -> None:
    if is_model and isinstance(os.fspath(path) if isinstance(path, os.PathLike) else path, str):
        return
    given = f"{type(model).__name__} as the model, {type(path).__name__} as the path"
    wrong = "arguments of other types are expected, or in another order"
    raise ConfigError(where=call.partition("(")[0], given=given, wrong=wrong, fix=f"write {call}")


def _write(
    path: Path,
    state: dict[str, Tensor],
    packed: bool,
    axes: Mapping[str, int],
    patterns: Mapping[str, Rule],
    other: dict[str, str],
) -> None:
    if patterns and not packed:
        raise ConfigError(where=str(path), given="patterns", wrong="a dense file has none", fix="give packed=True")
    with explained(path):
        if path.is_dir():
            raise ConfigError(where=str(path), given="a folder", wrong="a file is expected", fix="give a file's name")
    tied = ties(state) if packed else {}
    groupings = choose(state, tied, axes, patterns) if packed else {}
    tensors: dict[str, Tensor] = {}
    encodings: dict[str, Encoding] = {}
    for name, tensor in state.items():
        if name in groupings:
            made = pack(tensor.cpu(), groupings[name], name=name)
            encodings[name] = made.encoding
            tensors |= {name + VALUES: made.values, name + INDEX: made.index}
        elif name not in tied:
            tensors[name] = tensor.cpu().resolve_conj().resolve_neg().contiguous()
    described = {"format": "pt"} | other  # other loaders look for it
    if packed:
        checksums = {name: _checksum(tensor) for name, tensor in tensors.items()}
        described = metadata.describe(Contents(encodings, tied, checksums, described), tensors)
    container.write(path, tensors, described)


def _checksum(tensor: Tensor) -> str:
    return f"{zlib.crc32(container.octets(tensor).numpy().data):08x}"


def _tensor(file: container.Opened, name: str, checksum: str | None) -> Tensor:
    """One tensor, compared with its checksum if there is one."""
    tensor = file.tensor(name)
    if checksum is not None and _checksum(tensor) != checksum:
        wrong = "the tensor's bytes have another checksum: they were changed"
        raise damaged(f"{file.where}: {name!r}", f"checksum {checksum}", wrong)
    return tensor


def _unpack_when_complete(tensors: dict[str, Tensor], name: str, encodings: Mapping[str, Encoding], where: str) -> None:
    """Replace values and index by the dense weight as soon as both have been read."""
    weight = name.removesuffix(VALUES).removesuffix(INDEX)
    if weight in encodings and weight + VALUES in tensors and weight + INDEX in tensors:
        packed = Encoded(tensors.pop(weight + VALUES), tensors.pop(weight + INDEX), encodings[weight])
        tensors[weight] = unpack(packed, f"{where}: {weight!r}")
