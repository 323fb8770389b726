"""Files that were cut or changed, lie, or are none: an error that says so."""

from __future__ import annotations

import json
import pickle
import struct
import tracemalloc
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import nmlearn as nm
from nmlearn.errors import FormatError
from nmlearn.files import model_file
from packed_weights import sparse_bits


def rewritten(path: Path, change) -> None:
    """Change the header as a table, and write the file with the new one; the checksums stay what they were."""
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    weights = json.loads(header["__metadata__"]["nm_weights"])
    change(header, weights)
    header["__metadata__"]["nm_weights"] = json.dumps(weights)
    text = json.dumps(header, separators=(",", ":")).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])


def entry(**changes):
    return lambda header, weights: header["fc.nm_values"].update(changes)


def weight(**changes):
    return lambda header, weights: weights["fc"].update(changes)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (entry(shape=[2**62, 2**62]), "overflow"),
        (entry(shape=[2**59, 0]), "invalid shape"),
        (entry(shape=[-8, -8]), "invalid value"),
        (entry(shape=[8, True]), "invalid type: boolean"),
        (entry(shape=[16, 4]), r"fc.nm_values.*F32 \[16, 4\]: a 2:4 weight of shape \[8, 16\] has F32 \[8, 8\]"),
        (entry(dtype="F64"), "invalid shape"),
        (entry(dtype="I32"), "fc.nm_values"),
        (entry(dtype="F4"), "invalid shape"),
        (entry(dtype="F3"), "unknown variant `F3`"),
        (entry(data_offsets=[0, 10**30]), "invalid type"),
        (entry(data_offsets=[0, 10**9]), "invalid offset"),
        (entry(data_offsets=[1, 257]), "invalid offset for tensor `(bias|fc.nm_values)`"),
        (weight(m=0), "fc'.*1 <= N <= M <= 64"),
        (weight(m=10**30), "fc"),
        (weight(n=1), "fc.nm_values"),
        (weight(n=2.0), "fc'.*whole numbers"),
        (weight(axis=2), "fc"),
        (weight(axis=0), "fc'|fc.nm_values|checksum"),
        (weight(m=5), "fc'.*not a multiple of 5"),
        (weight(shape=[2**62, 2**62]), "fc"),
        (weight(shape=[8, 2**40]), "fc.nm_values"),
        (weight(dtype="I32"), "fc'.*floating-point"),
        (weight(code="huffman"), "fc'.*offsets, bitmask, combination"),
        (weight(code="bitmask"), "fc.nm_index"),
        (weight(code=["offsets"]), "fc'.*code"),
        (lambda header, weights: weights.pop("fc"), "fc.nm_"),
        (lambda header, weights: weights.update(other=weights["fc"]), "other'.*missing"),
        (lambda header, weights: header["__metadata__"].update(nm_version="3"), "reads versions 1 and 2; .*newer"),
        (lambda header, weights: header["__metadata__"].update(nm_version="1"), "header was changed"),
        (lambda header, weights: header["bias"].update(dtype="I32"), "header was changed"),
        (lambda header, weights: header["bias"].update(shape=[3, 3]), "header was changed"),
        (lambda header, weights: header["__metadata__"].update(nm_tied='{"a": "nothing"}'), "'a'.*no such tensor"),
        (lambda header, weights: header["__metadata__"].update(nm_crc32="{}"), "bias'.*without a checksum"),
        (lambda header, weights: header["__metadata__"].update(nm_crc32="[" * 10000), "nm_crc32.*not JSON"),
        (lambda header, weights: header["__metadata__"].pop("nm_format"), "it should be"),
        (lambda header, weights: header["__metadata__"].update(author="me"), "header was changed"),
    ],
)
def test_lying_headers_are_errors_that_name_the_file_and_where_it_can_be_the_tensor(tmp_path, change, match):
    path = tmp_path / "m.safetensors"
    fc = sparse_bits((8, 16), nm.Grouping(nm.Pattern("2:4"), 1))
    nm.save({"fc": fc, "bias": torch.ones(9)}, path)
    rewritten(path, change)
    with pytest.raises(FormatError, match=match) as caught:
        nm.load(path)
    assert caught.value.where.startswith(str(path)) and caught.value.fix


def test_a_packed_file_that_lost_its_metadata_is_not_taken_for_a_dense_one(tmp_path):
    nm.save({"fc": sparse_bits((8, 16), nm.Grouping(nm.Pattern("2:4"), 1))}, tmp_path / "m.safetensors")
    save_file(load_file(tmp_path / "m.safetensors"), tmp_path / "lost.safetensors")
    with pytest.raises(FormatError, match="metadata that describes it is missing"):
        nm.load(tmp_path / "lost.safetensors")


@pytest.mark.parametrize("zipped", [True, False])
def test_files_of_torch_save_are_named(tmp_path, zipped):
    for name, value in (("x.pt", {"a": torch.ones(2)}), ("x.bin", torch.nn.Linear(64, 64).state_dict())):
        torch.save(value, tmp_path / name, _use_new_zipfile_serialization=zipped)
        with pytest.raises(FormatError, match=r"torch\.save.*read it with torch\.load, and write .* with nm\.save"):
            nm.load(tmp_path / name)
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(FormatError, match=r"torch\.save"):
        nm.load(tmp_path / "x.pkl")
    (tmp_path / "cut").write_bytes(struct.pack("<Q", 0x280) + b'{"a":')
    with pytest.raises(FormatError, match="cut short"):
        nm.load(tmp_path / "cut")


@pytest.mark.parametrize("name", ["fc.nm_index", "fc.nm_values"])
def test_a_weight_named_like_a_part_of_one(tmp_path, name):
    fc = sparse_bits((8, 16), nm.Grouping(nm.Pattern("2:4"), 1))
    grouping = {name: nm.Grouping(nm.Pattern("2:4"), 1)}
    model_file._write(tmp_path / "m.safetensors", {name: fc}, True, {}, grouping, {})  # nm.save refuses the name
    with pytest.raises(FormatError, match="no weight's name ends in"):
        nm.load(tmp_path / "m.safetensors")


def test_one_flipped_bit_is_noticed_and_named(tmp_path):
    path = tmp_path / "m.safetensors"
    nm.save({"fc": sparse_bits((8, 16), nm.Grouping(nm.Pattern("2:4"), 1))}, path)
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    with pytest.raises(FormatError, match=r"'fc\.nm_index'.*the tensor's bytes have another checksum"):
        nm.load(path)


@pytest.mark.parametrize(
    ("raw", "match"),
    [
        (b"", "cut short or changed, or is not a safetensors file: .*header too small"),
        (b"1234567", "header too small"),
        (struct.pack("<Q", 2**63) + b"{}", "header too large"),
        (struct.pack("<Q", 2) + b"[]", "invalid type"),
        (struct.pack("<Q", 2) + b"{\xff", "invalid UTF-8"),
        (struct.pack("<Q", 100_000) + b"[" * 100_000, "invalid type"),
        (struct.pack("<Q", 13) + b'{"\\ud800":{}}', "invalid JSON"),
        (struct.pack("<Q", 20) + b'{"__metadata__":[1]}', "invalid type"),
        (struct.pack("<Q", 8) + b'{"a":{}}', "missing field `dtype`"),
        (struct.pack("<Q", 2) + b"{}x", "not fully covered"),
    ],
)
def test_what_is_no_safetensors_file(tmp_path, raw, match):
    (tmp_path / "m.safetensors").write_bytes(raw)
    with pytest.raises(FormatError, match=match):
        nm.load(tmp_path / "m.safetensors")


def octets(text: str, data: bytes) -> bytes:
    """A file with this header and data."""
    return struct.pack("<Q", len(text.encode())) + text.encode() + data


TENSOR = '{"dtype":"U8","shape":[1],"data_offsets":[0,1]}'


@pytest.mark.parametrize(
    ("text", "data", "match"),
    [
        (f'{{"a":{TENSOR},"a":{TENSOR}}}', b"\1", "a name occurs twice"),
        ('{"__metadata__":{"x":"1","x":"2"}}', b"", "a name occurs twice"),
        (f'{{"a":{TENSOR}}}'.replace("U8", "F8_E8M0"), b"\1", "'a': given dtype 'F8_E8M0': nmlearn reads F64, F32"),
        ('{"a":{"dtype":"F6_E2M3","shape":[4],"data_offsets":[0,3]}}', bytes(3), "'a': given dtype 'F6_E2M3'"),
        ('{"a":{"dtype":"F4","shape":[2],"data_offsets":[0,1]}}', bytes(1), "'a': given dtype 'F4'"),
        (f'{{"a":{TENSOR}}}'.replace("U8", "BOOL"), b"\2", "'a': given the byte 2: a BOOL is 0 or 1"),
        (f'{{"a":{TENSOR}}}'.replace("[1]", str([1] * 65)), b"\1", "'a': given shape .*not a list of sizes"),
        ('{"a":{"dtype":"U8","shape":[0,1152921504606846977],"data_offsets":[0,0]}}', b"", "'a': given shape"),
    ],
)
def test_what_the_library_accepts_and_we_do_not(tmp_path, text, data, match):
    (tmp_path / "m.safetensors").write_bytes(octets(text, data))
    with safe_open(tmp_path / "m.safetensors", "pt"):
        pass
    with pytest.raises(FormatError, match=match):
        nm.load(tmp_path / "m.safetensors")


def test_holes_and_overlaps(tmp_path):
    def file(*offsets: tuple[int, int]) -> bytes:
        table = {f"t{i}": {"dtype": "U8", "shape": [b - a], "data_offsets": [a, b]} for i, (a, b) in enumerate(offsets)}
        return octets(json.dumps(table), bytes(8))

    path = tmp_path / "m.safetensors"
    path.write_bytes(file((4, 8), (0, 4)))
    assert list(nm.load(path)) == ["t1", "t0"]
    for offsets in (((0, 4), (5, 8)), ((0, 5), (4, 8)), ((0, 8), (0, 8)), ((1, 8),), ((0, 7),)):
        path.write_bytes(file(*offsets))
        with pytest.raises(FormatError, match=r"invalid offset|not fully covered"):
            nm.load(path)


def test_a_header_has_4_mib_and_a_sixteenth_of_the_data(tmp_path):
    path = tmp_path / "m.safetensors"
    for more, data, fits in ((0, 0, True), (1, 0, False), (1, 15, False), (1, 16, True), (2, 31, False), (2, 32, True)):
        table = {"data": {"dtype": "U8", "shape": [data], "data_offsets": [0, data]}}
        path.write_bytes(octets(json.dumps(table).ljust((4 << 20) + more), bytes(data)))
        for read in (nm.load, model_file.stored, model_file.notes):
            if fits:
                read(path)
            else:
                with pytest.raises(FormatError, match=rf"with {data} bytes of data it may have 4,194,30[45]"):
                    read(path)


def test_a_long_header_is_refused_before_it_is_read(tmp_path):
    empty = {f"t{i:06}": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for i in range(100_000)}
    (tmp_path / "m.safetensors").write_bytes(octets(json.dumps(empty), b""))
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match="its header: it has"):
            nm.load(tmp_path / "m.safetensors")
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
