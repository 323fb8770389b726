"""Model files that a stranger may send, and what loading each has to give.

python tests/support/hostile_files.py     writes them to tests/files/corpus/, where the tests read them
"""

from __future__ import annotations

import json
from pathlib import Path

from independent_writer import Parts, Tensor, Weight, entries, entry, f32, file, packed, plain

FOLDER = Path(__file__).parents[1] / "files" / "corpus"
A, B, ONE = f32(1.0, -2.5), f32(0.0, float("inf")), ("U8", [1], b"\1")
LONG = ("F64", [], bytes(8))
EMPTY = {"a": ("F32", [0], b""), "b": A, "c": ("I64", [0, 3], b""), "d": ("BOOL", [2, 0, 4], b""), "e": LONG}
HALF, ODD = Weight(2, 4, [(0, 1), (2, 3), (0, 3), (1, 2)]), Weight(1, 4, [(0,), (3,)])
NAMES = ["", " ", "a/../../b", "a\\b", "\0", "\x1b[2J\r\u202e", "é", "e\u0301", "名", "\U0001f600", "__proto__"]
NAMES += ["a.b..c", "nm_values", "a.nm_value", "a.NM_INDEX", "format", "x" * 300, "'; DROP TABLE", "{}", "%s", "null"]


def header(table: object, data: bytes = b"", **looks: object) -> bytes:
    return file(json.dumps(table, **looks), data)  # type: ignore[arg-type]


def offsets(*places: tuple[object, object], data: int = 8) -> bytes:
    """Tensors of bytes at these places."""
    sizes = [b - a if isinstance(a, int) and isinstance(b, int) else 1 for a, b in places]
    table = {f"t{i}": entry("U8", [size], *place) for i, (place, size) in enumerate(zip(places, sizes, strict=True))}
    return header(table, bytes(range(data)))


def one(kind: object, shape: object, size: int) -> bytes:
    """One tensor of this type, shape and size."""
    return header({"a": entry(kind, shape, 0, size)}, bytes(size))


def changed(**parts: object) -> bytes:
    """The packed file of HALF with other texts or tables; they are called as the attributes of Parts."""

    def change(of: Parts) -> None:
        for name, value in parts.items():
            setattr(of, name, value if isinstance(value, str) else getattr(of, name) | value)  # type: ignore[operator]

    return packed({"w": HALF}, {"b": A}, change)


def described(**changes: object) -> bytes:
    """HALF with another description, sealed."""
    return changed(weights={"w": HALF.described | changes})


def stored(**tensors: Tensor) -> bytes:
    """HALF with other tensors in the file, sealed; ``values`` and ``index`` are its own."""
    return packed({"w": HALF}, {"b": A}, lambda of: of.stored.update({f"w.nm_{k}": t for k, t in tensors.items()}))


def index(weight: Weight, octets: bytes) -> bytes:
    """A weight with another index, sealed."""
    return packed({"w": weight}, {}, lambda of: of.stored.update({"w.nm_index": ("U8", [len(octets)], octets)}))


def swapped(data: bytes, old: bytes, new: bytes) -> bytes:
    """A file in whose header something of the same length stands for something else, its checksums as they were."""
    assert data.count(old) == 1 and len(old) == len(new)
    return data.replace(old, new)


# Each of these is right, odd as it may be: what a reader has to give.
RIGHT: dict[str, tuple[bytes, dict[str, Tensor]]] = {
    "nothing": (file("{}"), {}),
    "metadata_alone": (header({"__metadata__": {"nmlearn": "no key of ours", "": ""}}), {}),
    "names": (plain(dict.fromkeys(NAMES, A)), dict.fromkeys(NAMES, A)),
    "names_raw": (plain(dict.fromkeys(NAMES, A), ensure_ascii=False), dict.fromkeys(NAMES, A)),
    "wide_json": (plain({"a": A, "b": B}, {"k": "v"}, indent=4), {"a": A, "b": B}),
    "padded": (file(json.dumps(entries({"a": A})[0]) + " " * 50, A[2]), {"a": A}),
    "metadata_last": (header(entries({"a": A})[0] | {"__metadata__": {"a": "b"}}, A[2]), {"a": A}),
    "order_of_keys": (header({"a": {"shape": [2], "data_offsets": [0, 8], "dtype": "F32"}}, A[2]), {"a": A}),
    "order_of_data": (
        header({"a": entry("F32", [2], 8, 16), "b": entry("F32", [2], 0, 8)}, B[2] + A[2]), {"a": A, "b": B}
    ),
    "space_first": (file(" {}"), {}),  # as JSON allows
    "another_key": (header({"a": entry("U8", [1], 0, 1) | {"strides": [1]}}, b"\1"), {"a": ONE}),
    "metadata_null": (header({"__metadata__": None, "a": entry("U8", [1], 0, 1)}, b"\1"), {"a": ONE}),
    "empty_tensors": (plain(EMPTY), EMPTY),
    "unaligned": (plain({"a": ONE, "b": LONG, "c": ONE}), {"a": ONE, "b": LONG, "c": ONE}),
    "flags": (plain({"a": ("BOOL", [2], b"\0\1")}), {"a": ("BOOL", [2], b"\0\1")}),
    "packed": (packed({"w": HALF}, {"b": A}), {"w": HALF.dense, "b": A}),
    "index_first": (packed({"w": HALF}, {"b": A}, lambda of: of.order("w.nm_index")), {"w": HALF.dense, "b": A}),
    "index_of_one_values_of_the_other": (
        packed({"w": HALF, "v": ODD}, {}, lambda of: of.order("w.nm_index", "v.nm_index", "v.nm_values")),
        {"w": HALF.dense, "v": ODD.dense},
    ),
    "tied": (changed(tied={"t": "w", "s": "b"}), {"w": HALF.dense, "b": A, "t": HALF.dense, "s": A}),
    "packed_odd_names": (
        packed({name: HALF for name in NAMES}), {name: HALF.dense for name in NAMES}
    ),
    "w_within_w": (packed({"w": HALF, "w.nm_value": HALF}), {"w": HALF.dense, "w.nm_value": HALF.dense}),
    "no_rows": (packed({"w": Weight(2, 4, [], rows=0)}), {"w": ("F32", [0, 4], b"")}),
    "keeps_all": (packed({"w": Weight(2, 2, [(0, 1)] * 4, "combination")}), {"w": Weight(2, 2, [(0, 1)] * 4).dense}),
    "one_of_64": (packed({"w": Weight(1, 64, [(63,), (0,)])}), {"w": Weight(1, 64, [(63,), (0,)]).dense}),
    "version_1": (packed({"w": HALF}, {"b": A}, version="1"), {"w": HALF.dense, "b": A}),
}  # fmt: skip
for code in ("offsets", "bitmask", "combination"):
    for axis in (0, 1):
        odd = Weight(3, 6, [(0, 2, 4), (3, 4, 5), (0, 1, 2)], code, rows=3, axis=axis)
        RIGHT[f"{code}_axis_{axis}"] = packed({"w": odd}), {"w": odd.dense}

# Each of these a reader has to refuse.
ENTRY = '{"dtype":"U8","shape":[1],"data_offsets":[0,1]}'
WRONG = {
    # what is no file of this kind
    "no_bytes": b"",
    "seven_bytes": b"\2\0\0\0\0\0\0",
    "no_header": file(""),
    "header_cut": file("{}", length=3),
    "header_of_2_64": file("{}", length=2**64 - 1),
    "header_of_4_gib": file("{}", length=2**32),
    "bom": file("\ufeff{}"),
    "list": file("[]"),
    "number": file("1"),
    "deep": file('{"a":' * 5000),
    "utf_8": file(b'{"\xff":{}}'),
    "utf_16": file(json.dumps(entries({"a": A})[0]).encode("utf-16-le"), A[2]),
    "half_a_pair": file('{"\\ud800":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'),
    "nan": file('{"a":{"dtype":"U8","shape":[NaN],"data_offsets":[0,0]}}'),
    "zip": b"PK\x03\x04" + bytes(40),
    "pickle": b"\x80\x02}q\0." + bytes(40),
    # names that are there twice
    "twice": file(f'{{"a":{ENTRY},"a":{ENTRY}}}', b"\1"),
    "twice_in_other_letters": file(f'{{"a":{ENTRY},"\\u0061":{ENTRY}}}', b"\1"),
    "twice_and_empty": file(f'{{"a":{ENTRY},"a":{ENTRY}}}'.replace("1", "0")),
    "twice_metadata": file('{"__metadata__":{"a":"1"},"__metadata__":{"a":"2"}}'),
    "twice_in_metadata": file('{"__metadata__":{"a":"1","a":"2"}}'),
    "twice_in_an_entry": file('{"a":{"dtype":"U8","dtype":"I8","shape":[0],"data_offsets":[0,0]}}'),
    "twice_described": changed(weights=f'{{"w":{json.dumps(HALF.described)},"w":{json.dumps(HALF.described)}}}'),
    # data that overlap, leave holes, or are not there
    "overlap": offsets((0, 5), (4, 8)),
    "the_same_data": offsets((0, 8), (0, 8)),
    "within": offsets((0, 8), (2, 4)),
    "hole_first": offsets((1, 8)),
    "hole": offsets((0, 4), (5, 8)),
    "hole_last": offsets((0, 7)),
    "beyond": offsets((0, 9)),
    "far_beyond": offsets((0, 2**63)),
    "backwards": offsets((8, 0)),
    "negative": offsets((-1, 8)),
    "huge": offsets((0, 10**30)),
    "fractions": offsets((0.0, 8.0)),
    "text": offsets(("0", "8")),
    "true": offsets((False, True), data=1),
    "three_offsets": header({"a": {"dtype": "U8", "shape": [8], "data_offsets": [0, 8, 8]}}, bytes(8)),
    "no_offsets": header({"a": {"dtype": "U8", "shape": [0]}}),
    # types and shapes
    "another_size": one("F32", [3], 8),
    "lower_case": one("f32", [2], 8),
    "a_list_as_type": one(["F32"], [2], 8),
    "type_of_4_bits": one("F4", [2], 1),
    "type_unknown": one("F8_E8M0", [1], 1),
    "shape_text": one("U8", ["8"], 8),
    "shape_number": one("U8", 8, 8),
    "shape_negative": one("U8", [-2, -4], 8),
    "shape_overflows": one("U8", [2**32, 2**32], 0),
    "shape_of_no_bytes_overflows": one("U8", [0, 2**62], 0),
    "shape_of_65": one("U8", [1] * 65, 1),
    "flag_2": plain({"a": ("BOOL", [2], b"\1\2")}),
    "metadata_number": header({"__metadata__": {"a": 1}}),
    "metadata_list": header({"__metadata__": ["a"]}),
    "metadata_tensor": header({"__metadata__": entry("U8", [1], 0, 1)}, b"\1"),
    # metadata of ours
    "lost_metadata": plain({"w.nm_values": HALF.values, "w.nm_index": HALF.index}),
    "lost_metadata_of_one": plain({"a.nm_index": A}),
    "version_3": packed({"w": HALF}, version="3"),
    "version_2.0": packed({"w": HALF}, version="2.0"),
    "version_1_in_2": swapped(packed({"w": HALF}), b'"nm_version":"2"', b'"nm_version":"1"'),
    "another_format": changed(more={"nm_format": "NMLEARN"}),
    "key_unknown": changed(more={"nm_more": ""}),
    "key_unknown_in_a_dense_file": plain({"a": A}, {"nm_more": ""}),
    "version_alone": plain({"a": A}, {"nm_version": "2"}),
    "seal_of_another": changed(after={"nm_header_crc32": "00000000"}),
    "seal_lost": changed(after={"nm_header_crc32": None}),
    "metadata_added_later": changed(after={"author": "somebody"}),
    "metadata_lost_later": changed(after={"format": None}),
    "weights_no_json": changed(weights="{"),
    "weights_list": changed(weights="[]"),
    "weights_deep": changed(weights="[" * 5000),
    "weights_half_a_pair": changed(weights=json.dumps({"w": HALF.described, "\ud800": HALF.described})),
    "weights_of_5000_digits": changed(weights=f'{{"w":{{"n":{"1" * 5000}}}}}'),
    "weight_list": changed(weights={"w": []}),
    "weights_none": changed(weights='{}'),
    "tied_to_nothing": changed(tied={"t": "no"}),
    "tied_half_a_pair": changed(tied=json.dumps({"\ud800": "w"})),
    "tied_to_itself": changed(tied={"t": "t"}),
    "tied_in_a_ring": changed(tied={"t": "s", "s": "t"}),
    "tied_to_a_part": changed(tied={"t": "w.nm_values"}),
    "tied_to_a_list": changed(tied={"t": ["w"]}),
    "tied_is_there": changed(tied={"b": "w"}),
    "tied_like_a_part": changed(tied={"t.nm_index": "w"}),
    "checksum_wrong": changed(crc32={"b": "00000000"}),
    "checksum_number": changed(crc32={"b": 0}),
    "checksum_long": changed(crc32={"b": "0" * 9}),
    "checksum_of_nothing": changed(crc32={"no": "00000000"}),
    "checksums_none": changed(crc32={}, more={"nm_crc32": "{}"}),
    "n_0": described(n=0),
    "n_above_m": described(n=5),
    "n_text": described(n="2"),
    "n_true": described(n=True),
    "m_65": described(n=2, m=65),
    "m_huge": described(m=10**30),
    "m_does_not_divide": described(m=3),
    "axis_negative": described(axis=-1),
    "axis_2": described(axis=2),
    "shape_of_another": described(shape=[4, 4]),
    "shape_long": described(shape=[2, 4, 2**40]),
    "shape_of_none": described(shape=[]),
    "type_of_numbers": described(dtype="I32"),
    "type_of_another": described(dtype="F16"),
    "type_null": described(dtype=None),
    "code_unknown": described(code="huffman"),
    "code_null": described(code=None),
    "code_of_another": described(code="bitmask"),
    "one_key_more": described(bias=True),
    "one_key_less": changed(weights={"w": {"n": 2}}),
    "no_values": packed({"w": HALF}, {}, lambda of: of.stored.pop("w.nm_values")),
    "no_index": packed({"w": HALF}, {}, lambda of: of.stored.pop("w.nm_index")),
    "values_short": stored(values=f32(1, 2, 3)),
    "values_flat": stored(values=f32(1, 2, 3, 4, 5, 6, 7, 8)),
    "index_long": stored(index=("U8", [4], bytes(4))),
    "index_signed": stored(index=("I8", HALF.index[1], HALF.index[2])),
    "dense_as_well": packed({"w": HALF}, {"w": HALF.dense}),
    "part_of_nothing": packed({"w": HALF}, {"v.nm_index": A}),
    "named_like_a_part": packed({"w.nm_values": HALF}),
    "part_of_a_part": packed({"w": HALF, "w.nm_index": HALF}),
    # indices that their codes do not allow
    "offsets_twice": index(HALF, b"\0\0"),
    "offsets_fall": index(HALF, b"\1\1"),
    "offset_6_of_6": index(Weight(1, 6, [(0,), (0,)]), bytes([6])),
    "bitmask_of_1": index(Weight(2, 4, HALF.places, "bitmask"), bytes([0x13, 0x33])),
    "bitmask_of_4": index(Weight(2, 4, HALF.places, "bitmask"), bytes([0xF3, 0x33])),
    "combination_6_of_6": index(Weight(2, 4, HALF.places, "combination"), bytes([6, 0])),
    "bits_after_the_last": index(Weight(2, 4, HALF.places, "combination"), bytes([0, 0x80])),
}  # fmt: skip


def corpus() -> dict[str, bytes]:
    """All files by name."""
    assert not RIGHT.keys() & WRONG.keys()
    return {name: raw for name, (raw, _) in RIGHT.items()} | WRONG


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for old in FOLDER.iterdir():
        old.unlink()
    for name, raw in corpus().items():
        (FOLDER / f"{name}.safetensors").write_bytes(raw)
