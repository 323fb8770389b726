"""Models as safetensors files, packed or dense: ``nm.save(model, path)`` and ``nm.load(path, model)``.

A dense file is an ordinary safetensors file with the zeros in place. A packed one is described in docs/format.md; it is
sealed by checksums, so that a file that was cut or changed is an error that names the tensor, never wrong weights.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor, nn

from nmlearn.errors import ConfigError
from nmlearn.files.atomic import write_atomic
from nmlearn.files.formats import Layout, Packed, header, metadata, pack, unpack
from nmlearn.files.formats.damage import damaged
from nmlearn.files.formats.metadata import INDEX, OURS, VALUES, Contents
from nmlearn.files.selection import choose
from nmlearn.files.tensors import fill, plain_state, ties
from nmlearn.model.plan import Rule, input_axes


@dataclass(frozen=True)
class Stored:
    """How a file holds one tensor: in how many bytes, and its layout when it is packed."""

    nbytes: int
    layout: Layout | None


def save(
    model: nn.Module | Mapping[str, Tensor],
    path: str | os.PathLike[str],
    packed: bool = True,
    patterns: Mapping[str, Rule] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a model or a state dict as a safetensors file, whole or not at all.

    Packed, every weight of two or more dimensions whose zeros show a pattern N:M along its inputs is stored as N values
    of every group and an index, the rest as it is, and a tied tensor once. Only the bits of +0.0 count as zeros: what
    :func:`load` returns is equal bit for bit. Dense, every name of the state is there in full, for any reader.

    Args:
        model: a module (wrappers are looked through), or tensors by name; on any device, of any layout in memory.
        path: the file; its folder is made.
        packed: False for a dense file.
        patterns: a glob on a weight's name or a module's to the pattern to pack with, found from the zeros unless
            given; None stores dense, a :class:`nmlearn.Grouping` says the input axis as well; the last match wins.
        metadata: text to keep in the file beside the tensors, by keys of your own; packing and unpacking keep it.

    Raises:
        StateError: something that no such file can hold: no tensor, a sharded or quantized one, a name of ours.
        ViolationError, PatternError: a pattern that does not hold, or does not fit, by the weight's name.
        PlanError: a glob that matches nothing.
        WriteError: the system refuses, for want of space or a permission; a file that was there is as it was.
        ConfigError: patterns for a dense file, a path that is a folder, or metadata that is not text or under our keys.
    """
    other = dict(metadata or {})
    for key, text in other.items():
        if not isinstance(key, str) or not isinstance(text, str) or key.startswith(OURS):
            wrong = f"keys and values are text, and keys that begin with {OURS} describe a packed file"
            raise ConfigError(where=f"metadata[{key!r}]", given=f"{text!r:.80}", wrong=wrong, fix="choose another key")
    axes = input_axes(model) if isinstance(model, nn.Module) else {}
    _write(Path(path), plain_state(model), packed, axes, patterns or {}, other)


def load(path: str | os.PathLike[str], model: nn.Module | None = None) -> dict[str, Tensor]:
    """Read a packed file, or any safetensors file, as a dense state dict.

    Args:
        path: the file.
        model: filled in place if given; the tensors are copied into its own types and devices.

    Returns:
        tensors on the CPU by name, in the order in which they were saved, contiguous; further names of a tied weight
        come last and are the same tensor.

    Raises:
        FormatError: the file cannot be read, or is not what it says; nothing larger than the file allows is allocated.
        StateError: the file is of another model; the model is then unchanged.
    """
    with _opened(Path(path)) as file:
        entries, contents, start = _head(file, str(path))
        tensors: dict[str, Tensor] = {}
        for name, entry in entries.items():
            tensors[name] = _tensor(file, start, name, entry, contents.checksums.get(name), str(path))
            _unpack_when_complete(tensors, name, contents.layouts, str(path))
    tensors |= {name: tensors[target] for name, target in contents.tied.items()}
    if model is not None:
        fill(model, tensors, str(path))
    return tensors


def stored(path: str | os.PathLike[str]) -> dict[str, Stored]:
    """What a file holds, from its header alone; tied names are left out.

    Raises:
        FormatError: the header cannot be read, or is not what it says.
    """
    with _opened(Path(path)) as file:
        entries, contents, _ = _head(file, str(path))
    parts = {name + suffix for name in contents.layouts for suffix in (VALUES, INDEX)}
    packed = {name: Stored(layout.nbytes, layout) for name, layout in contents.layouts.items()}
    return packed | {n: Stored(entry.end - entry.begin, None) for n, entry in entries.items() if n not in parts}


def notes(path: str | os.PathLike[str]) -> dict[str, str]:
    """The metadata of a file that does not describe its packing: what :func:`save` was given, and others'.

    Raises:
        FormatError: the header cannot be read, or is not what it says.
    """
    with _opened(Path(path)) as file:
        return _head(file, str(path))[1].other


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    packed: bool = True,
    patterns: Mapping[str, Rule] | None = None,
) -> None:
    """Write a packed or dense file of what another file holds, keeping the metadata of others.

    Args and Raises: those of :func:`save` and :func:`load`.
    """
    with _opened(Path(source)) as file:
        _, contents, _ = _head(file, str(source))
    axes = {name: layout.grouping.axis for name, layout in contents.layouts.items()}
    _write(Path(target), plain_state(load(source)), packed, axes, patterns or {}, contents.other)


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
    if path.is_dir():
        raise ConfigError(where=str(path), given="a folder", wrong="a file is to be written", fix="give a file's name")
    tied = ties(state) if packed else {}
    groupings = choose(state, tied, axes, patterns) if packed else {}
    tensors: dict[str, Tensor] = {}
    layouts: dict[str, Layout] = {}
    for name, tensor in state.items():
        if name in groupings:
            made = pack(tensor.cpu(), groupings[name], name=name)
            layouts[name] = made.layout
            tensors |= {name + VALUES: made.values, name + INDEX: made.index}
        elif name not in tied:
            tensors[name] = tensor
    described = {"format": "pt"} | other  # what loaders of the field look for
    if packed:
        checksums = {name: f"{zlib.crc32(_bytes(tensor)):08x}" for name, tensor in tensors.items()}
        described = metadata.describe(Contents(layouts, tied, checksums, described))
    head, order = header.build(tensors, described)
    write_atomic(path, lambda file: (file.write(head), *(file.write(_bytes(tensors[name])) for name in order)))


def _bytes(tensor: Tensor) -> memoryview:
    """A tensor's numbers in the order of a file; the memory is shared when they lie like that already."""
    plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    return plain.reshape(-1).view(torch.uint8).numpy().data


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        if path.exists() and not path.is_file():  # opening a pipe would wait for its writer
            raise OSError("it is not a file")
        with open(path, "rb") as file:
            yield file
    except OSError as error:
        raise damaged(str(path), "this file", f"cannot be read: {error}", "give a safetensors file") from error


def _head(file: BinaryIO, where: str) -> tuple[dict[str, header.Entry], Contents, int]:
    """The entries, what the metadata says, and where the data begins; all of it checked."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > min(size - 8, header.LARGEST):
        given = f"{size} bytes that begin with a header of {length}"
        raise damaged(where, given, "it is cut short, or is no safetensors file")
    text = file.read(length)
    entries, found = header.parse(text, size - 8 - length, where)
    contents = metadata.read(found, entries, where)
    if header.SEAL in found:
        header.check_seal(text, where)
    return entries, contents, 8 + length


def _tensor(file: BinaryIO, start: int, name: str, entry: header.Entry, checksum: str | None, where: str) -> Tensor:
    """The bytes of one tensor, compared with their checksum if there is one."""
    octets = torch.empty(entry.end - entry.begin, dtype=torch.uint8, device="cpu")
    file.seek(start + entry.begin)
    if file.readinto(octets.numpy()) != len(octets):  # type: ignore[attr-defined]
        raise damaged(f"{where}: {name!r}", f"{len(octets)} bytes", "the file became shorter while it was read")
    if checksum is not None and f"{zlib.crc32(octets.numpy().data):08x}" != checksum:
        raise damaged(
            f"{where}: {name!r}", f"checksum {checksum}", "the tensor's bytes have another: they were changed"
        )
    if entry.dtype == torch.bool and len(octets) and int(octets.max()) > 1:
        raise damaged(f"{where}: {name!r}", f"the byte {int(octets.max())}", "a BOOL is 0 or 1")
    return octets.view(entry.dtype).view(entry.shape)


def _unpack_when_complete(tensors: dict[str, Tensor], name: str, layouts: Mapping[str, Layout], where: str) -> None:
    """Replace values and index by the dense weight as soon as both have been read."""
    weight = name.removesuffix(VALUES).removesuffix(INDEX)
    if weight in layouts and weight + VALUES in tensors and weight + INDEX in tensors:
        packed = Packed(tensors.pop(weight + VALUES), tensors.pop(weight + INDEX), layouts[weight])
        tensors[weight] = unpack(packed, f"{where}: {weight!r}")
