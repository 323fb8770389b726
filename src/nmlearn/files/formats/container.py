"""The safetensors container, read and written by the safetensors library.

In addition to the library's checks, this refuses duplicate names in a header: the library uses the last, other readers
the first. It refuses types that nmlearn does not know, shapes that no tensor can have, and BOOLs other than 0 and 1. It
refuses headers that are long for their data: reading one takes some 20 times its bytes as memory, and time.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, TensorSpec, safe_open, serialize_file
from torch import Tensor

from nmlearn.errors import StateError
from nmlearn.files.atomic import replacing
from nmlearn.files.formats.damage import damaged
from nmlearn.files.paths import refusal

METADATA = "__metadata__"
_MOST_DIMENSIONS = 64  # numpy's limit
_MOST_ELEMENTS = 1 << 60
_HEADER, _SHARE = 4 << 20, 16  # the longest header without data, and how many bytes of data allow it one more byte

_KINDS = "float64 float32 float16 bfloat16 float8_e4m3fn float8_e5m2 float8_e4m3fnuz float8_e5m2fnuz complex64"
_KINDS += " int64 int32 int16 int8 uint64 uint32 uint16 uint8 bool"
# What the library calls them in files: F64, F8_E4M3, ...
NAMES = {
    getattr(torch, kind): TensorSpec(dtype=kind, shape=(), data_ptr=1, data_len=0).dtype for kind in _KINDS.split()
}
DTYPES = {name: dtype for dtype, name in NAMES.items()}


@dataclass(frozen=True)
class Opened:
    """An open file whose header has been checked.

    Attributes:
        where: what errors call the file.
        header: its bytes, without its length.
        metadata: text by key.
        entries: types and shapes by name, in the order of their data, as meta tensors.
        reader: the library's.
    """

    where: str
    header: bytes
    metadata: dict[str, str]
    entries: dict[str, Tensor]
    reader: Any

    def tensor(self, name: str) -> Tensor:
        """Read one tensor into its own memory: later changes to the file do not affect it.

        Raises:
            FormatError: a BOOL is neither 0 nor 1.
        """
        tensor: Tensor = self.reader.get_tensor(name)
        if tensor.dtype == torch.bool and tensor.numel() and int(octets(tensor).max()) > 1:
            raise damaged(f"{self.where}: {name!r}", f"the byte {int(octets(tensor).max())}", "a BOOL is 0 or 1")
        return tensor


@contextmanager
def opened(path: Path) -> Iterator[Opened]:
    """Open a file; nothing larger than the file is allocated, apart from some 20 times its header.

    Raises:
        FormatError: the file cannot be read, or its header is invalid, long for its data (docs/format.md), or does not
            describe exactly its bytes.
    """
    where = str(path)
    try:
        if path.is_dir():
            names = ", ".join(sorted(file.name for file in path.glob("*.safetensors"))[:6])
            fix = f"give a safetensors file{names and f' in it: {names}'}"
            raise damaged(where, "a folder", "it is not a file", fix)
        if path.exists() and not path.is_file():  # opening a pipe would wait for its writer
            raise OSError("it is not a file")
        if why := _long_header(path):
            raise damaged(where, "its header", why)
        with safe_open(path, "pt", backend="pread") as reader:  # mapped memory would change with the file
            with open(path, "rb") as file:
                header = file.read(int.from_bytes(file.read(8), "little"))
            table(header, f"{where}: its header")
            entries = {name: _entry(reader.get_slice(name), f"{where}: {name!r}") for name in reader.offset_keys()}
            yield Opened(where, header, reader.metadata() or {}, entries, reader)
    except (OSError, ValueError) as error:
        if not (why := refusal(error)):
            raise
        raise damaged(where, "this file", f"cannot be read: {why}", "give a safetensors file") from error
    except SafetensorError as error:
        if _is_pickled(path):
            fix = "read it with torch.load, and write its state dict with nm.save"
            raise damaged(where, "this file", "it looks like a file of torch.save, not safetensors", fix) from error
        wrong = f"it was cut short or changed, or is not a safetensors file: {error}"
        raise damaged(where, "this file", wrong) from error


def _long_header(path: Path) -> str:
    """Why a file's header is too long for its data; empty if it is not, or if the file ends within it."""
    with open(path, "rb") as file:
        length, data = int.from_bytes(file.read(8), "little"), os.fstat(file.fileno()).st_size - 8
    longest = _HEADER + max(0, data - length) // _SHARE
    if not longest < length <= data:
        return ""
    return f"it has {length:,} bytes, and with {data - length:,} bytes of data it may have {longest:,}"


def _is_pickled(path: Path) -> bool:
    """Whether it begins like a zip or a pickle; a safetensors file of such a length has a brace in byte 8."""
    with open(path, "rb") as file:
        head = file.read(9)
    return head.startswith((b"PK\x03\x04", b"\x80")) and head[8:] not in (b"", b"{")


def octets(tensor: Tensor) -> Tensor:
    """The bytes of a contiguous tensor, uint8 ``[nbytes]``; shares memory."""
    return tensor.reshape(-1).view(torch.uint8)


def write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a file, whole or not at all; equal contents give equal bytes.

    Args:
        path: the file.
        tensors: contiguous, on the CPU.
        metadata: text by key.

    Raises:
        WriteError: the system refuses; an existing file is unchanged.
        StateError: the header would be too long to be read; an existing file is unchanged.
    """
    specs = {name: _spec(tensor) for name, tensor in tensors.items()}
    with replacing(path) as part:
        try:
            serialize_file(specs, part, dict(metadata))
        except SafetensorError as error:
            number = re.search(r"os error (\d+)", str(error))
            raise OSError(int(number[1]) if number else 0, str(error)) from error
        if why := _long_header(part):
            fix = "join small tensors, save fewer, or shorten names and metadata"
            raise StateError(where=str(path), given="its header: names, types and metadata", wrong=why, fix=fix)
        _sort_metadata(part)


def _spec(tensor: Tensor) -> TensorSpec:
    address = tensor.data_ptr() or 1  # an empty tensor may have none, and the library requires one
    kind = str(tensor.dtype).removeprefix("torch.")
    return TensorSpec(dtype=kind, shape=tensor.shape, data_ptr=address, data_len=tensor.nbytes)


def _sort_metadata(path: Path) -> None:
    """Sort the metadata: the library writes it in random order (its issue 584), and files would differ."""
    with open(path, "r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header[METADATA] = dict(sorted(header[METADATA].items()))
        file.seek(8)
        file.write(json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode().ljust(length))


def table(text: str | bytes, where: str) -> dict[str, Any]:
    """The table in a JSON text.

    Raises:
        FormatError: the text is not a table, or a name occurs twice.
    """
    try:
        found = json.loads(text, object_pairs_hook=_unique_names)
    except (ValueError, RecursionError) as error:
        raise damaged(where, "metadata", f"it is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise damaged(where, "metadata", "it is not a table")
    return found


def is_text(value: object) -> bool:
    """Whether it is text that a file can store; half a surrogate pair is not."""
    return isinstance(value, str) and (value.isascii() or value.encode(errors="ignore").decode() == value)


def shape_of(value: Any) -> tuple[int, ...] | None:
    """A shape that torch supports, or None."""
    if not isinstance(value, list) or not all(type(size) is int and size >= 0 for size in value):
        return None
    # Without the zeros: torch computes strides from the other sizes, which must not overflow.
    if len(value) > _MOST_DIMENSIONS or math.prod(size or 1 for size in value) > _MOST_ELEMENTS:
        return None
    return tuple(value)


def _unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice")
    if not all(map(is_text, found)):
        raise ValueError("a name is not valid text")
    return found


def _entry(slice_: Any, where: str) -> Tensor:
    dtype, shape = DTYPES.get(slice_.get_dtype()), shape_of(slice_.get_shape())
    if dtype is None:
        raise damaged(where, f"dtype {slice_.get_dtype()!r}", f"nmlearn reads {', '.join(DTYPES)}")
    if shape is None:
        raise damaged(where, f"shape {slice_.get_shape()!r:.80}", "it is not a list of sizes that a tensor can have")
    return torch.empty(shape, dtype=dtype, device="meta")
