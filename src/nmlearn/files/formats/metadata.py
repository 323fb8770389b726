"""What the metadata of a packed file says about its weights: docs/format.md, version 1.

nm_format         "nmlearn"
nm_version        "1"
nm_header_crc32   8 hexadecimal digits
nm_weights        JSON: NAME -> {"n", "m", "axis", "shape", "dtype", "code"}
nm_tied           JSON: NAME -> the name under which its tensor is stored
nm_crc32          JSON: name of a stored tensor -> 8 hexadecimal digits
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nmlearn.errors import PatternError
from nmlearn.files.formats.damage import damaged
from nmlearn.files.formats.header import DTYPES, NAMES, SEAL, Entry, shape_of, unique_names
from nmlearn.files.formats.layout import CODES, Layout
from nmlearn.maths.groups import Grouping, misfit
from nmlearn.maths.pattern import Pattern

FORMAT = "nmlearn"
VERSION = "1"
OURS = "nm_"  # begins the keys of a packed file; all others belong to others
VALUES, INDEX = ".nm_values", ".nm_index"
_KEYS = {"nm_format", "nm_version", SEAL, "nm_weights", "nm_tied", "nm_crc32"}


@dataclass(frozen=True)
class Contents:
    """What is in a file beside plain tensors; all empty for a file that nmlearn did not pack.

    Attributes:
        layouts: by the packed weight's name.
        tied: further names of a weight.
        checksums: by the stored tensor's name, CRC32 as 8 hexadecimal digits.
        other: metadata of others.
    """

    layouts: dict[str, Layout] = field(default_factory=dict)
    tied: dict[str, str] = field(default_factory=dict)
    checksums: dict[str, str] = field(default_factory=dict)
    other: dict[str, str] = field(default_factory=dict)


def describe(contents: Contents) -> dict[str, str]:
    """The metadata of a packed file, with a place for the header's checksum."""
    weights = {
        name: {
            "n": layout.grouping.pattern.n,
            "m": layout.grouping.pattern.m,
            "axis": layout.grouping.axis,
            "shape": list(layout.shape),
            "dtype": NAMES[layout.dtype],
            "code": layout.code,
        }
        for name, layout in contents.layouts.items()
    }
    tables = {"nm_weights": weights, "nm_tied": contents.tied, "nm_crc32": contents.checksums}
    fixed = {"nm_format": FORMAT, "nm_version": VERSION, SEAL: "0" * 8}
    return contents.other | fixed | {key: json.dumps(table, separators=(",", ":")) for key, table in tables.items()}


def read(metadata: Mapping[str, str], entries: Mapping[str, Entry], where: str) -> Contents:
    """What metadata says, checked against the tensors that are there.

    Raises:
        FormatError: metadata that is incomplete, of another version, or does not fit the tensors.
    """
    other = {key: value for key, value in metadata.items() if not key.startswith(OURS)}
    ours = {key: value for key, value in metadata.items() if key.startswith(OURS)}
    if not ours:
        for name in entries:
            if name.endswith((VALUES, INDEX)):
                raise damaged(f"{where}: {name!r}", "a packed weight", "the metadata that describes it is missing")
        return Contents(other=other)
    if "nm_version" in ours and ours["nm_version"] != VERSION:
        fix = "read it with the version of nmlearn that wrote it, or a newer one"
        raise damaged(where, f"nm_version {ours['nm_version']!r:.40}", f"this nmlearn reads version {VERSION}", fix)
    if ours.keys() != _KEYS or ours["nm_format"] != FORMAT:
        raise damaged(where, f"metadata {', '.join(sorted(ours))!r:.200}", f"it should be {', '.join(sorted(_KEYS))}")
    described = _table(ours, "nm_weights", where)
    layouts = {name: _layout(value, f"{where}: {name!r}") for name, value in described.items()}
    contents = Contents(layouts, _table(ours, "nm_tied", where), _table(ours, "nm_crc32", where), other)
    for name, layout in layouts.items():
        _check_tensors(name, layout, entries, where)
    _check_names(contents, entries, where)
    return contents


def _table(metadata: Mapping[str, str], key: str, where: str) -> dict[str, Any]:
    try:
        table = json.loads(metadata[key], object_pairs_hook=unique_names)
    except (ValueError, RecursionError) as error:
        raise damaged(f"{where}: {key}", "metadata", f"it is not JSON: {error}") from error
    if not isinstance(table, dict):
        raise damaged(f"{where}: {key}", "metadata", "it is not a table")
    return table


def _layout(value: Any, where: str) -> Layout:
    if not isinstance(value, dict) or value.keys() != {"n", "m", "axis", "shape", "dtype", "code"}:
        raise damaged(where, "its entry in nm_weights", "it does not hold exactly n, m, axis, shape, dtype and code")
    n, m, axis, shape = value["n"], value["m"], value["axis"], shape_of(value["shape"])
    code, dtype = value["code"], DTYPES.get(value["dtype"]) if isinstance(value["dtype"], str) else None
    if not all(type(number) is int for number in (n, m, axis)):
        raise damaged(where, f"n {n!r:.40}, m {m!r:.40}, axis {axis!r:.40}", "they are not whole numbers")
    if dtype is None or not dtype.is_floating_point:
        raise damaged(where, f"dtype {value['dtype']!r:.40}", "it is no floating-point type that nmlearn reads")
    if not isinstance(code, str) or code not in CODES:
        raise damaged(where, f"code {code!r:.40}", f"the codes of version {VERSION} are {', '.join(CODES)}")
    if shape is None or not 0 <= axis < len(shape):
        raise damaged(where, f"shape {value['shape']!r:.80}, axis {axis}", "they are not those of a weight")
    try:
        pattern = Pattern(n, m)
    except PatternError as error:
        raise damaged(where, f"pattern {error.given:.40}", error.wrong) from error
    why = misfit(shape, axis, pattern)
    if why:
        raise damaged(where, f"shape {list(shape)}, axis {axis}, pattern {pattern}", why)
    return Layout(Grouping(pattern, axis), shape, dtype, code)


def _check_tensors(name: str, layout: Layout, entries: Mapping[str, Entry], where: str) -> None:
    """Whether both tensors of a packed weight are there and measure what its layout says."""
    wanted = ((VALUES, layout.dtype, layout.values_shape), (INDEX, DTYPES["U8"], layout.index_shape))
    for suffix, dtype, shape in wanted:
        entry = entries.get(name + suffix)
        if entry is None:
            raise damaged(f"{where}: {name!r}", "a packed weight", f"the tensor {name + suffix!r} is missing")
        if entry.dtype != dtype or entry.shape != shape:
            given = f"{NAMES[entry.dtype]} {list(entry.shape)}"
            wrong = f"a {layout.grouping.pattern} weight of shape {list(layout.shape)} has {NAMES[dtype]} {list(shape)}"
            raise damaged(f"{where}: {name + suffix!r}", given, wrong)


def _check_names(contents: Contents, entries: Mapping[str, Entry], where: str) -> None:
    """Whether every stored tensor has a checksum and one meaning, and every further name leads to a tensor."""
    parts = {name + suffix for name in contents.layouts for suffix in (VALUES, INDEX)}
    plain = entries.keys() - parts
    for name in plain:
        if name.endswith((VALUES, INDEX)) or name in contents.layouts:
            raise damaged(f"{where}: {name!r}", "a tensor", "nm_weights does not describe it, or it is there twice")
    known = plain | contents.layouts.keys()
    for name, target in contents.tied.items():
        if not isinstance(target, str) or target not in known or name in known:
            raise damaged(f"{where}: {name!r}", f"tied to {target!r:.80}", "there is no such tensor, or it has its own")
    for name in sorted(entries.keys() ^ contents.checksums.keys()):
        raise damaged(f"{where}: {name!r}", "nm_crc32", "a tensor without a checksum, or a checksum without a tensor")
    for name, digits in contents.checksums.items():
        if not isinstance(digits, str) or len(digits) != 8:
            raise damaged(f"{where}: {name!r}", f"checksum {digits!r:.40}", "it is not 8 hexadecimal digits")
