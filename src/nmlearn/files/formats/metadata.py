"""What the metadata of a packed file says about its weights: docs/format.md, version 2; version 1 is read as well."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from nmlearn.errors import PatternError
from nmlearn.files.formats.container import DTYPES, NAMES, Opened, shape_of, table
from nmlearn.files.formats.damage import damaged
from nmlearn.files.formats.encoding import CODES, Encoding
from nmlearn.maths.groups import Grouping, misfit
from nmlearn.maths.pattern import Pattern

FORMAT = "nmlearn"
VERSION = "2"
OURS = "nm_"  # begins the keys that describe a packed file; all others are the user's
VALUES, INDEX = ".nm_values", ".nm_index"
SEAL = "nm_header_crc32"
_KEYS = {"nm_format", "nm_version", SEAL, "nm_weights", "nm_tied", "nm_crc32"}


@dataclass(frozen=True)
class Contents:
    """What a file contains in addition to plain tensors; all empty for a file that nmlearn did not pack.

    Attributes:
        encodings: by the packed weight's name.
        tied: further names of a weight.
        checksums: by the stored tensor's name, in the order in which tensors were saved: CRC-32, 8 hexadecimal digits.
        other: all other metadata.
    """

    encodings: dict[str, Encoding] = field(default_factory=dict)
    tied: dict[str, str] = field(default_factory=dict)
    checksums: dict[str, str] = field(default_factory=dict)
    other: dict[str, str] = field(default_factory=dict)


def describe(contents: Contents, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """The metadata of a packed file that stores these tensors, sealed."""
    weights = {
        name: {
            "n": encoding.grouping.pattern.n,
            "m": encoding.grouping.pattern.m,
            "axis": encoding.grouping.axis,
            "shape": list(encoding.shape),
            "dtype": NAMES[encoding.dtype],
            "code": encoding.code,
        }
        for name, encoding in contents.encodings.items()
    }
    tables = {"nm_weights": weights, "nm_tied": contents.tied, "nm_crc32": contents.checksums}
    texts = {key: json.dumps(each, separators=(",", ":")) for key, each in tables.items()}
    metadata = contents.other | {"nm_format": FORMAT, "nm_version": VERSION} | texts
    return metadata | {SEAL: _seal(metadata, tensors)}


def read(file: Opened) -> Contents:
    """What the metadata of a file says, checked against the tensors that are there.

    Raises:
        FormatError: metadata that is incomplete, of another version, changed, or does not fit the tensors.
    """
    where = file.where
    other = {key: value for key, value in file.metadata.items() if not key.startswith(OURS)}
    ours = {key: value for key, value in file.metadata.items() if key.startswith(OURS)}
    if not ours:
        for name in file.entries:
            if name.endswith((VALUES, INDEX)):
                raise damaged(f"{where}: {name!r}", "a packed weight", "the metadata that describes it is missing")
        return Contents(other=other)
    version = ours.get("nm_version", VERSION)
    if version not in ("1", VERSION):
        fix = "read it with the version of nmlearn that wrote it, or a newer one"
        raise damaged(where, f"nm_version {version!r:.40}", f"this nmlearn reads versions 1 and {VERSION}", fix)
    if ours.keys() != _KEYS or ours["nm_format"] != FORMAT:
        raise damaged(where, f"metadata {', '.join(sorted(ours))!r:.200}", f"it should be {', '.join(sorted(_KEYS))}")
    described, tied, checksums = (table(ours[k], f"{where}: {k}") for k in ("nm_weights", "nm_tied", "nm_crc32"))
    encodings = {name: _encoding(value, f"{where}: {name!r}") for name, value in described.items()}
    contents = Contents(encodings, tied, checksums, other)
    for name, encoding in encodings.items():
        _check_tensors(name, encoding, file.entries, where)
    _check_names(contents, file.entries, where)
    seal = _seal_1(file.header) if version == "1" else _seal(file.metadata, file.entries)
    if seal != ours[SEAL]:
        raise damaged(where, SEAL, "the header was changed after the file was written: its checksum differs")
    return contents


def _seal(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    """The checksum of what a header says, whatever its order."""
    texts = {key: text for key, text in metadata.items() if key != SEAL}
    types = {name: [NAMES[tensor.dtype], list(tensor.shape)] for name, tensor in tensors.items()}
    canonical = json.dumps([texts, types], ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return f"{zlib.crc32(canonical.encode()):08x}"


def _seal_1(header: bytes) -> str:
    """The checksum of version 1: of the header's bytes with zeros for its own digits."""
    before, mark, after = header.partition(f'"{SEAL}":"'.encode())
    return f"{zlib.crc32(before + mark + b'0' * 8 + after[8:]):08x}"


def _encoding(value: Any, where: str) -> Encoding:
    if not isinstance(value, dict) or value.keys() != {"n", "m", "axis", "shape", "dtype", "code"}:
        raise damaged(where, "its entry in nm_weights", "it must contain exactly n, m, axis, shape, dtype and code")
    n, m, axis, shape = value["n"], value["m"], value["axis"], shape_of(value["shape"])
    code, dtype = value["code"], DTYPES.get(value["dtype"]) if isinstance(value["dtype"], str) else None
    if not all(type(number) is int for number in (n, m, axis)):
        raise damaged(where, f"n {n!r:.40}, m {m!r:.40}, axis {axis!r:.40}", "they are not whole numbers")
    if dtype is None or not dtype.is_floating_point:
        raise damaged(where, f"dtype {value['dtype']!r:.40}", "it is not a floating-point type that nmlearn reads")
    if not isinstance(code, str) or code not in CODES:
        raise damaged(where, f"code {code!r:.40}", f"the codes are {', '.join(CODES)}")
    if shape is None or not 0 <= axis < len(shape):
        raise damaged(where, f"shape {value['shape']!r:.80}, axis {axis}", "they are not those of a weight")
    try:
        pattern = Pattern(n, m)
    except PatternError as error:
        raise damaged(where, f"pattern {error.given:.40}", error.wrong) from error
    why = misfit(shape, axis, pattern)
    if why:
        raise damaged(where, f"shape {list(shape)}, axis {axis}, pattern {pattern}", why)
    return Encoding(Grouping(pattern, axis), shape, dtype, code)


def _check_tensors(name: str, encoding: Encoding, entries: Mapping[str, Tensor], where: str) -> None:
    """Check that both tensors of a packed weight exist and have the sizes that its encoding requires."""
    wanted = ((VALUES, encoding.dtype, encoding.values_shape), (INDEX, DTYPES["U8"], encoding.index_shape))
    for suffix, dtype, shape in wanted:
        entry = entries.get(name + suffix)
        if entry is None:
            raise damaged(f"{where}: {name!r}", "a packed weight", f"the tensor {name + suffix!r} is missing")
        if entry.dtype != dtype or entry.shape != shape:
            given = f"{NAMES[entry.dtype]} {list(entry.shape)}"
            weight = f"a {encoding.grouping.pattern} weight of shape {list(encoding.shape)}"
            raise damaged(f"{where}: {name + suffix!r}", given, f"{weight} has {NAMES[dtype]} {list(shape)}")


def _check_names(contents: Contents, entries: Mapping[str, Tensor], where: str) -> None:
    """Check that every stored tensor has a checksum and one meaning, and every tied name refers to a tensor."""
    parts = {name + suffix for name in contents.encodings for suffix in (VALUES, INDEX)}
    plain = entries.keys() - parts
    for name in (*contents.encodings, *contents.tied):
        if name.endswith((VALUES, INDEX)):  # unpacking could not tell it from a part of another weight
            raise damaged(f"{where}: {name!r}", "a weight", f"no weight's name ends in {VALUES} or {INDEX}")
    for name in plain:
        if name.endswith((VALUES, INDEX)) or name in contents.encodings:
            raise damaged(f"{where}: {name!r}", "a tensor", "nm_weights does not describe it, or it occurs twice")
    known = plain | contents.encodings.keys()
    for name, target in contents.tied.items():
        if not isinstance(target, str) or target not in known or name in known:
            raise damaged(
                f"{where}: {name!r}", f"tied to {target!r:.80}", "there is no such tensor, or the name has its own"
            )
    for name in sorted(entries.keys() ^ contents.checksums.keys()):
        raise damaged(f"{where}: {name!r}", "nm_crc32", "a tensor without a checksum, or a checksum without a tensor")
    for name, digits in contents.checksums.items():
        if not isinstance(digits, str) or len(digits) != 8:
            raise damaged(f"{where}: {name!r}", f"checksum {digits!r:.40}", "it is not 8 hexadecimal digits")
