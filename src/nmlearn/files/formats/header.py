"""The header of a safetensors file: which tensors lie where. Nothing that it says is believed unchecked.

8 bytes   length of the header, little-endian
header    JSON: {"NAME": {"dtype", "shape", "data_offsets": [begin, end]}, ..., "__metadata__": {text: text}}
data      the tensors' bytes, without holes
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from nmlearn.files.formats.damage import damaged

LARGEST = 100_000_000  # bytes of a header; what the safetensors library accepts, too
METADATA = "__metadata__"
SEAL = "nm_header_crc32"
_MARK = f'"{SEAL}":"'.encode()
_MOST_DIMENSIONS = 64  # numpy's limit
_MOST_ELEMENTS = 1 << 60

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Entry:
    """One tensor of a file; begin and end count from the end of the header."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


def build(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> tuple[bytes, list[str]]:
    """The header of a file, sealed with its own checksum where the metadata has a place for it.

    Args:
        tensors: in the order in which the header lists them.
        metadata: text to text.

    Returns:
        the first bytes of the file (length and header), and the names in the order of their data: wide types first, so
        that every tensor begins at a multiple of its type's size.
    """
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    begin, offsets = 0, {}
    for name in order:
        offsets[name] = [begin, begin + tensors[name].nbytes]
        begin += tensors[name].nbytes
    listed = {
        name: {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets[name]}
        for name, tensor in tensors.items()
    }
    text = json.dumps({METADATA: dict(metadata)} | listed, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if SEAL in metadata:
        text = _sealed(text)
    return len(text).to_bytes(8, "little") + text, order


def parse(text: bytes, size: int, where: str) -> tuple[dict[str, Entry], dict[str, str]]:
    """The tensors and the metadata of a header.

    Args:
        text: the header, without its length.
        size: how many bytes of data follow it.
        where: what errors call the file.

    Raises:
        FormatError: the header is no safetensors header, or does not describe exactly these bytes.
    """
    try:
        header = json.loads(text.decode(), object_pairs_hook=unique_names)
    except (ValueError, RecursionError) as error:
        raise damaged(where, f"a header of {len(text)} bytes", f"it is not JSON: {error}") from error
    if not isinstance(header, dict):
        raise damaged(where, "its header", "it is not a table of tensors")
    metadata = header.pop(METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise damaged(f"{where}: {METADATA}", "metadata", "it is not a table of text")
    entries = {name: _entry(value, size, f"{where}: {name!r}") for name, value in header.items()}
    _check_holes(entries, size, where)
    return entries, metadata


def check_seal(text: bytes, where: str) -> None:
    """Compare a header with the checksum it holds.

    Raises:
        FormatError: it was changed after it was written.
    """
    if text.count(_MARK) != 1 or _sealed(text) != text:
        raise damaged(where, SEAL, "the header was changed after the file was written: its checksum differs")


def shape_of(value: Any) -> tuple[int, ...] | None:
    """A shape out of JSON; None for what is none, or is too large for any memory."""
    if not isinstance(value, list) or len(value) > _MOST_DIMENSIONS:
        return None
    # An empty tensor can have absurd dimensions as well, whose product overflows where strides are computed.
    if not all(type(size) is int and 0 <= size <= _MOST_ELEMENTS for size in value):
        return None
    return tuple(value) if math.prod(size for size in value if size) <= _MOST_ELEMENTS else None


def unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON table, for ``object_pairs_hook``; ValueError for a name that is there twice, or is no text."""
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a name is there twice")
    for name in table:
        name.encode()  # half a surrogate pair is no text: UnicodeEncodeError, a ValueError
    return table


def _sealed(text: bytes) -> bytes:
    """The header with its CRC32, computed with the digits of the CRC32 itself zero, written into it."""
    start = text.index(_MARK) + len(_MARK)
    zeroed = text[:start] + b"0" * 8 + text[start + 8 :]
    return text[:start] + f"{zlib.crc32(zeroed):08x}".encode() + text[start + 8 :]


def _entry(value: Any, size: int, where: str) -> Entry:
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise damaged(where, "its entry in the header", "it does not hold exactly dtype, shape and data_offsets")
    dtype = DTYPES.get(value["dtype"]) if isinstance(value["dtype"], str) else None
    if dtype is None:
        raise damaged(where, f"dtype {value['dtype']!r}", f"nmlearn reads {', '.join(DTYPES)}")
    shape, offsets = shape_of(value["shape"]), value["data_offsets"]
    if shape is None:
        raise damaged(where, f"shape {value['shape']!r:.80}", "it is not a list of sizes that a tensor can have")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(place) is int for place in offsets):
        raise damaged(where, f"data_offsets {offsets!r:.80}", "they are not a begin and an end")
    begin, end = offsets
    if not 0 <= begin <= end <= size:
        raise damaged(
            where,
            f"data_offsets {offsets!r:.80}",
            f"the file holds {size} bytes of data: it was cut short, or its header lies",
        )
    if math.prod(shape) * dtype.itemsize != end - begin:
        raise damaged(where, f"{value['dtype']} {list(shape)} in {end - begin} bytes", "shape and size do not agree")
    return Entry(dtype, shape, begin, end)


def _check_holes(entries: dict[str, Entry], size: int, where: str) -> None:
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != end:
            raise damaged(f"{where}: {name!r}", f"begin {entry.begin}", f"the tensor before it ends at {end}")
        end = entry.end
    if end != size:
        raise damaged(where, f"{size} bytes of data", f"the header describes {end}: cut short, or something was added")
