"""Ways to ruin a packed file.

A damage or a lie is an accident (bits flipped, bytes lost, doubled or overwritten, a header that is wrong) and must be
noticed. A forgery has its checksums made right again: then weights may differ, but nothing else may go wrong.
"""

from __future__ import annotations

import json
import random
import struct
import zlib
from typing import Any

ODD = [0, 1, -1, 2, 3, 63, 64, 65, 2**31, 2**60, 2**62, 2**63, 2**64, 10**40, 0.5, 1e400, None, True, "", "x", [], {}]
ODD += ["F16", "F64", "offsets", "bitmask", "combination", "layers.1", "layers.1.nm_index"]
TEXTS = ("nm_weights", "nm_tied", "nm_crc32")  # JSON within JSON


def damage(raw: bytes, rng: random.Random) -> bytes:
    """An accident of the disk or the line."""
    out, kind = bytearray(raw), rng.randrange(6)
    place, length = rng.randrange(len(raw)), rng.randrange(1, 40)
    if kind == 0:
        del out[place:]
    elif kind == 1:
        for _ in range(rng.choice([1, 1, 1, 2, 8])):
            out[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    elif kind == 2:
        out[place : place + length] = rng.randbytes(length)
    elif kind == 3:
        del out[place : place + length]
    elif kind == 4:
        out[place:place] = raw[rng.randrange(len(raw)) :][:length]
    else:
        out[:8] = struct.pack("<Q", rng.choice([rng.randrange(len(raw)), rng.getrandbits(64), rng.getrandbits(34)]))
    return bytes(out)


def lie(raw: bytes, rng: random.Random) -> bytes:
    """A header in which some values, names or entries are others."""
    header, data = split(raw)
    for _ in range(rng.choice([1, 1, 2, 3])):
        _change(header, rng)
    return join(header, data)


def forge(raw: bytes, rng: random.Random) -> bytes:
    """A lie, or another bit in a tensor, with every checksum made right again."""
    if rng.random() < 0.5:
        header, data = split(lie(raw, rng))
    else:
        header, data = split(raw)
        place = rng.randrange(len(data))
        data = data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :]
    metadata = header.get("__metadata__")
    if not isinstance(metadata, dict):
        return join(header, data)
    for name in list(metadata["nm_crc32"]) if isinstance(metadata.get("nm_crc32"), dict) else []:
        metadata["nm_crc32"][name] = f"{zlib.crc32(data[_span(header.get(name))]):08x}"
    metadata.pop("nm_header_crc32", None)
    known = split_texts(join(header, data))
    types = {name: [entry.get("dtype"), entry.get("shape")] for name, entry in known.items() if isinstance(entry, dict)}
    said = [types.pop("__metadata__", None) and known["__metadata__"], types]
    text = json.dumps(said, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    metadata["nm_header_crc32"] = f"{zlib.crc32(text.encode()):08x}"
    return join(header, data)


def split_texts(raw: bytes) -> dict[str, Any]:
    """The header as it stands: JSON within JSON is text."""
    (length,) = struct.unpack("<Q", raw[:8])
    return json.loads(raw[8 : 8 + length])


def split(raw: bytes) -> tuple[dict[str, Any], bytes]:
    """The header as nested tables, and the data."""
    (length,) = struct.unpack("<Q", raw[:8])
    header = split_texts(raw)
    metadata = header.get("__metadata__")
    for key in TEXTS if isinstance(metadata, dict) else ():
        if isinstance(text := metadata.get(key), str) and text.startswith("{"):
            metadata[key] = json.loads(text)
    return header, raw[8 + length :]


def join(header: dict[str, Any], data: bytes) -> bytes:
    """The inverse of :func:`split`."""
    metadata = header.get("__metadata__")
    for key in TEXTS if isinstance(metadata, dict) else ():
        if isinstance(metadata.get(key), dict):
            metadata[key] = json.dumps(metadata[key], separators=(",", ":"))
    text = json.dumps(header, separators=(",", ":")).encode()
    return struct.pack("<Q", len(text)) + text + data


def _change(table: Any, rng: random.Random) -> None:
    """Change, remove or rename one thing somewhere in nested tables and lists."""
    if not table:
        return
    key = rng.choice(list(table)) if isinstance(table, dict) else rng.randrange(len(table))
    if isinstance(table[key], dict | list) and rng.random() < 0.9:
        _change(table[key], rng)
        return
    kind = rng.randrange(4)
    if kind == 0 and type(table[key]) is int:
        table[key] += rng.choice([-1, 1, 4, 8])
    elif kind == 1:
        del table[key]
    elif kind == 2 and isinstance(table, dict):
        table[rng.choice(["layers.0", "layers.1.nm_index", "new", "shape", "n"])] = table.pop(key)
    else:
        table[key] = rng.choice(ODD)


def _span(entry: Any) -> slice:
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    if isinstance(offsets, list) and len(offsets) == 2 and all(type(place) is int for place in offsets):
        return slice(*offsets)
    return slice(0)
