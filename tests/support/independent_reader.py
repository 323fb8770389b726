"""A reader of packed files based only on docs/format.md, with numpy and struct: what another language would do.

It trusts the file apart from the checksums; it is slow and plain on purpose.
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I64": 8, "BOOL": 1}


def read(path: Path) -> dict[str, tuple[str, list[int], bytes]]:
    """Name -> dtype, shape, and the bytes of the dense tensor, row-major."""
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    text, data = raw[8 : 8 + length], raw[8 + length :]
    header = json.loads(text)
    metadata = header.pop("__metadata__")
    assert (metadata["nm_format"], metadata["nm_version"]) == ("nmlearn", "2")
    digits = metadata.pop("nm_header_crc32")
    said = [metadata, {name: [entry["dtype"], entry["shape"]] for name, entry in header.items()}]
    canonical = json.dumps(said, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()
    assert f"{zlib.crc32(canonical):08x}" == digits
    stored = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        assert f"{zlib.crc32(data[begin:end]):08x}" == json.loads(metadata["nm_crc32"])[name]
        stored[name] = (entry["dtype"], entry["shape"], data[begin:end])
    for name, weight in json.loads(metadata["nm_weights"]).items():
        values, index = stored.pop(f"{name}.nm_values"), stored.pop(f"{name}.nm_index")
        stored[name] = (weight["dtype"], weight["shape"], dense(weight, values[2], index[2]))
    return stored | {name: stored[target] for name, target in json.loads(metadata["nm_tied"]).items()}


def dense(weight: dict[str, Any], values: bytes, index: bytes) -> bytes:
    """The bytes of the dense weight."""
    n, m, axis, shape = weight["n"], weight["m"], weight["axis"], weight["shape"]
    number = np.dtype(f"<u{BYTES[weight['dtype']]}")
    groups = math.prod(shape) // m
    width = {
        "offsets": n * (m - 1).bit_length(),
        "bitmask": m,
        "combination": (math.comb(m, n) - 1).bit_length(),
    }[weight["code"]]
    kept = np.frombuffer(values, number).reshape(groups, n)
    out = np.zeros((groups, m), number)
    for group in range(groups):
        code = [index[i // 8] >> (i % 8) & 1 for i in range(group * width, (group + 1) * width)]
        for place, value in zip(places(weight["code"], code, n, m), kept[group], strict=True):
            out[group, place] = value
    others = [size for place, size in enumerate(shape) if place != axis]
    return np.ascontiguousarray(np.moveaxis(out.reshape([*others, shape[axis]]), -1, axis)).tobytes()


def places(code: str, bits: list[int], n: int, m: int) -> list[int]:
    """The kept places of one group."""
    if code == "bitmask":
        return [place for place, bit in enumerate(bits) if bit]
    if code == "offsets":
        width = (m - 1).bit_length()
        return [number(bits[i * width : (i + 1) * width]) for i in range(n)]
    found: list[int] = []
    rank = number(bits)
    for place in range(m):
        left = n - len(found)
        count = math.comb(m - 1 - place, left - 1) if left else 0
        if rank < count:
            found.append(place)
        else:
            rank -= count
    return found


def number(bits: list[int]) -> int:
    """A number from its bits, the lowest first."""
    return sum(bit << i for i, bit in enumerate(bits))
