"""A writer of model files by struct, json and zlib alone, from docs/format.md: right ones, and ones that lie.

It knows neither nmlearn nor the safetensors library; it is slow and plain on purpose.
"""

from __future__ import annotations

import itertools
import json
import struct
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

Tensor = tuple[str, list[int], bytes]  # type, shape and bytes


def file(header: str | bytes, data: bytes = b"", length: int | None = None) -> bytes:
    """A file with this header and data; its length may be a lie."""
    octets = header if isinstance(header, bytes) else header.encode()
    return struct.pack("<Q", len(octets) if length is None else length) + octets + data


def f32(*values: float) -> Tensor:
    return "F32", [len(values)], struct.pack(f"<{len(values)}f", *values)


def entry(kind: object, shape: object, *offsets: object) -> dict[str, object]:
    return {"dtype": kind, "shape": shape, "data_offsets": list(offsets)}


def entries(tensors: dict[str, Tensor]) -> tuple[dict[str, Any], bytes]:
    """Entries of a header for tensors one after the other, in the order that is given."""
    found, data = {}, b""
    for name, (kind, shape, octets) in tensors.items():
        found[name] = entry(kind, shape, len(data), len(data) + len(octets))
        data += octets
    return found, data


def plain(tensors: dict[str, Tensor], metadata: object = None, **looks: Any) -> bytes:
    """A dense file; ``looks`` are those of json.dumps."""
    found, data = entries(tensors)
    header = found if metadata is None else {"__metadata__": metadata} | found
    return file(json.dumps(header, **looks), data)


@dataclass(frozen=True)
class Weight:
    """A packed weight of two dimensions: the kept places of each group, row by row; the values count from 1."""

    n: int
    m: int
    places: list[tuple[int, ...]]
    code: str = "offsets"
    rows: int = 2
    axis: int = 1

    @property
    def shape(self) -> list[int]:
        columns = len(self.places) // self.rows * self.m if self.rows else self.m
        return [self.rows, columns] if self.axis == 1 else [columns, self.rows]

    @property
    def values(self) -> Tensor:
        count = len(self.places) * self.n
        columns = count // self.rows if self.rows else self.n
        return "F32", [self.rows, columns], struct.pack(f"<{count}f", *range(1, count + 1))

    @property
    def index(self) -> Tensor:
        width = (self.m - 1).bit_length()
        choices = list(itertools.combinations(range(self.m), self.n))
        numbers: dict[str, Callable[[tuple[int, ...]], list[tuple[int, int]]]] = {
            "offsets": lambda kept: [(place, width) for place in kept],
            "bitmask": lambda kept: [(int(place in kept), 1) for place in range(self.m)],
            "combination": lambda kept: [(choices.index(kept), (len(choices) - 1).bit_length())],
        }
        return stream(number for kept in self.places for number in numbers[self.code](kept))

    @property
    def dense(self) -> Tensor:
        numbers, rows = iter(range(1, len(self.places) * self.n + 1)), [[] for _ in range(self.rows)]
        for group, kept in enumerate(self.places):
            values = {place: float(next(numbers)) for place in kept}
            rows[group * self.rows // len(self.places)] += [values.get(place, 0.0) for place in range(self.m)]
        flat = [x for row in (rows if self.axis == 1 else zip(*rows, strict=True)) for x in row]
        return "F32", self.shape, struct.pack(f"<{len(flat)}f", *flat)

    @property
    def described(self) -> dict[str, Any]:
        return {"n": self.n, "m": self.m, "axis": self.axis, "shape": self.shape, "dtype": "F32", "code": self.code}


def stream(numbers: Iterable[tuple[int, int]]) -> Tensor:
    """Numbers of so many bits each, the lowest bit first."""
    bits = [number >> i & 1 for number, width in numbers for i in range(width)]
    octets = bytes(sum(bit << i for i, bit in enumerate(bits[k : k + 8])) for k in range(0, len(bits), 8))
    return "U8", [len(octets)], octets


def canonical(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()


@dataclass
class Parts:
    """A packed file before it is sealed, for changes."""

    stored: dict[str, Tensor]
    weights: dict[str, Any]
    tied: dict[str, Any]
    crc32: dict[str, Any]
    more: dict[str, Any]
    after: dict[str, Any]  # what replaces metadata once the seal is there

    def order(self, *names: str) -> None:
        """Store these first, in this order."""
        self.stored = {name: self.stored[name] for name in names} | self.stored


def packed(
    weights: dict[str, Weight],
    others: dict[str, Tensor] | None = None,
    change: Callable[[Parts], object] = lambda parts: None,
    version: str = "2",
) -> bytes:
    """A packed file, whose checksums are right for what ``change`` makes of it."""
    stored = dict(others or {})
    for name, weight in weights.items():
        stored |= {f"{name}.nm_values": weight.values, f"{name}.nm_index": weight.index}
    described = {name: weight.described for name, weight in weights.items()}
    parts = Parts(stored, described, {}, {}, {}, {})
    change(parts)
    sums = {name: f"{zlib.crc32(octets):08x}" for name, (_, _, octets) in parts.stored.items()} | parts.crc32
    tables = {"nm_weights": parts.weights, "nm_tied": parts.tied, "nm_crc32": sums}
    texts = {key: table if isinstance(table, str) else json.dumps(table) for key, table in tables.items()}
    metadata = {"format": "pt", "nm_format": "nmlearn", "nm_version": version} | texts | parts.more
    found, data = entries(parts.stored)
    types = {name: [each["dtype"], each["shape"]] for name, each in found.items()}
    header = {"__metadata__": metadata | {"nm_header_crc32": f"{zlib.crc32(canonical([metadata, types])):08x}"}} | found
    header["__metadata__"] |= parts.after
    header["__metadata__"] = {key: text for key, text in header["__metadata__"].items() if text is not None}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":"))
    return file(sealed_1(text) if version == "1" else text, data)


def sealed_1(text: str) -> str:
    """A header with the checksum of version 1: of its bytes, with zeros for its own digits."""
    before, mark, after = text.partition('"nm_header_crc32":"')
    digits = f"{zlib.crc32(f'{before}{mark}00000000{after[8:]}'.encode()):08x}"
    return before + mark + digits + after[8:]
