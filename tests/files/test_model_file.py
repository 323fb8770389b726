"""nm.save and nm.load: what comes back is what was there, for us and for a reader that knows only docs/format.md."""

from __future__ import annotations

import copy
import json
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import independent_reader
import nets
import nmlearn as nm
from nmlearn.errors import ConfigError, FormatError, PatternError, PlanError, StateError, ViolationError
from nmlearn.files.formats.header import NAMES
from nmlearn.files.model_file import convert, notes, stored
from packed_weights import DTYPES, same_bits, small_patterns, sparse_bits, weights


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(same_bits(a[name], b[name]) for name in a)


def sparse_net() -> nn.Module:
    """A network with linear, convolutional and transposed weights at 2:4, in the form that finalize leaves."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(8, 16, 3), nn.BatchNorm2d(16), nn.ConvTranspose2d(16, 6, 2), nn.Linear(32, 7))
    for layer, axis in ((net[0], 1), (net[2], 0), (net[3], 1)):
        grouping = nm.Grouping(nm.Pattern("2:4"), axis)
        layer.weight.data = sparse_bits(tuple(layer.weight.shape), grouping)
    return net


class Tied(nn.Module):
    """A language model's usual tie: the output layer is the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(32, 16)
        self.head = nn.Linear(16, 32, bias=False)
        self.head.weight = self.embedding.weight


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(st.lists(st.one_of(weights(small_patterns), weights()), max_size=3))
def test_law_save_then_load_is_the_same_for_both_readers(tmp_path, drawn):
    state = {f"layers.{i}.weight": weight for i, (weight, _) in enumerate(drawn)}
    state |= {"steps": torch.tensor(7), "flags": torch.tensor([True, False])}
    path = tmp_path / "m.safetensors"
    nm.save(state, path, patterns={f"layers.{i}.weight": grouping for i, (_, grouping) in enumerate(drawn)})
    assert {name for name, one in stored(path).items() if one.layout} == state.keys() - {"steps", "flags"}
    loaded = nm.load(path)
    assert same(loaded, state)
    assert list(loaded) == list(state)
    for name, (dtype, shape, raw) in independent_reader.read(path).items():
        assert (dtype, tuple(shape)) == (NAMES[state[name].dtype], tuple(state[name].shape))
        assert raw == state[name].contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_patterns_are_found_from_the_zeros(tmp_path, dtype):
    found = {}
    for text in ("1:2", "2:4", "1:4", "4:8", "1:16", "3:32", "5:64"):
        grouping = nm.Grouping(nm.Pattern(text), 1)
        found[text] = sparse_bits((256, 128), grouping, dtype, fewer=0.01)
    nm.save(found | {"dense": torch.ones(4, 8, dtype=dtype)}, tmp_path / "m.safetensors")
    layouts = {name: one.layout for name, one in stored(tmp_path / "m.safetensors").items()}
    assert layouts.pop("dense") is None
    assert {name: str(layout.grouping.pattern) for name, layout in layouts.items()} == {name: name for name in found}
    assert same(nm.load(tmp_path / "m.safetensors"), found | {"dense": torch.ones(4, 8, dtype=dtype)})


def test_a_finished_model(tmp_path):
    sparsifier = nets.learn(nm.LBC("1:4"))
    sparsifier.finalize()
    nm.save(sparsifier.model, tmp_path / "m.safetensors")
    layouts = {name: one.layout for name, one in stored(tmp_path / "m.safetensors").items()}
    for row in sparsifier.plan.sparse:
        assert layouts[row.name].grouping == row.grouping
    other = nets.convnet(seed=1)
    nm.load(tmp_path / "m.safetensors", other)
    assert nets.same(nets.snapshot(other), nets.snapshot(sparsifier.model))


@pytest.mark.parametrize(("text", "share"), [("2:4", 0.548), ("1:16", 0.0785)])
def test_a_whole_file_is_within_a_hundredth_of_its_bound(tmp_path, text, share):
    weight = sparse_bits((1024, 1024), nm.Grouping(nm.Pattern(text), 1), torch.float16)
    nm.save({"fc": weight}, tmp_path / "m.safetensors")
    layout = stored(tmp_path / "m.safetensors")["fc"].layout
    size = (tmp_path / "m.safetensors").stat().st_size
    assert size <= 1.01 * (layout.groups * layout.grouping.pattern.n * 16 + layout.index_bits) / 8
    assert size <= share * weight.nbytes


def test_a_model_says_where_its_inputs_run(tmp_path):
    net = sparse_net()
    nm.save(net, tmp_path / "packed.safetensors")
    nm.save(net, tmp_path / "dense.safetensors", packed=False)
    layouts = {name: one.layout for name, one in stored(tmp_path / "packed.safetensors").items() if one.layout}
    assert {name: layout.grouping.axis for name, layout in layouts.items()} == {
        "0.weight": 1, "2.weight": 0, "3.weight": 1
    }  # fmt: skip
    assert all(str(layout.grouping.pattern) == "2:4" for layout in layouts.values())
    for file in ("packed", "dense"):
        other = copy.deepcopy(net)
        for parameter in other.parameters():
            parameter.data.fill_(5)
        tensors = nm.load(tmp_path / f"{file}.safetensors", torch.nn.DataParallel(other))
        assert same(tensors, net.state_dict()) and same(other.state_dict(), net.state_dict())
    ordinary = load_file(tmp_path / "dense.safetensors")
    assert same(ordinary, dict(net.state_dict()))
    with safe_open(tmp_path / "dense.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize("packed", [True, False])
def test_metadata_is_kept(tmp_path, packed):
    nm.save(sparse_net(), tmp_path / "m.safetensors", packed=packed, metadata={"author": "somebody \u00e9"})
    for target in (True, False):
        convert(tmp_path / "m.safetensors", tmp_path / "again.safetensors", packed=target)
        assert notes(tmp_path / "again.safetensors") == {"format": "pt", "author": "somebody \u00e9"}
    for wrong in ({"nm_version": "1"}, {"author": 1}, {1: "author"}):
        with pytest.raises(ConfigError, match="metadata"):
            nm.save(sparse_net(), tmp_path / "no.safetensors", packed=packed, metadata=wrong)
    assert not (tmp_path / "no.safetensors").exists()


def test_a_default_device_changes_nothing(tmp_path):
    net = sparse_net()  # its weights need no offsets; this one does
    state = net.state_dict() | {"fc": sparse_bits((4, 32), nm.Grouping(nm.Pattern("1:16"), 1))}
    with torch.device("meta"):
        nm.save(state, tmp_path / "m.safetensors")
        assert same(nm.load(tmp_path / "m.safetensors"), state)


def test_wrapped_models_have_plain_names(tmp_path):
    net = sparse_net()
    nm.save(nn.DataParallel(net), tmp_path / "m.safetensors")
    assert same(nm.load(tmp_path / "m.safetensors"), net.state_dict())


def test_other_libraries_can_open_a_packed_file(tmp_path):
    net = sparse_net()
    nm.save(net, tmp_path / "m.safetensors")
    tensors = load_file(tmp_path / "m.safetensors")
    assert tensors["3.weight.nm_values"].shape == (7, 16) and tensors["3.weight.nm_index"].shape == (21,)
    assert same_bits(tensors["3.bias"], net[3].bias)


def test_tied_weights_are_stored_once_and_stay_tied(tmp_path):
    model = Tied()
    nm.save(model, tmp_path / "m.safetensors")
    assert list(stored(tmp_path / "m.safetensors")) == ["embedding.weight"]
    tensors = nm.load(tmp_path / "m.safetensors")
    assert tensors["head.weight"] is tensors["embedding.weight"]
    other = Tied()
    nm.load(tmp_path / "m.safetensors", other)
    assert same_bits(other.head.weight, model.head.weight) and other.head.weight is other.embedding.weight
    convert(tmp_path / "m.safetensors", tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "m.safetensors").read_bytes()
    nm.save(model, tmp_path / "dense.safetensors", packed=False)
    assert load_file(tmp_path / "dense.safetensors").keys() == model.state_dict().keys()
    save_file({"embedding.weight": model.embedding.weight.detach()}, tmp_path / "other.safetensors")
    nm.load(tmp_path / "other.safetensors", other)  # as Hugging Face writes it: one of the names only


def test_slices_of_one_tensor_are_not_ties(tmp_path):
    whole = torch.arange(32.0).view(4, 8)
    state = {"whole": whole, "part": whole[:2], "turned": whole.T, "empty": whole[:0], "also_empty": whole[:0]}
    nm.save(state, tmp_path / "m.safetensors")
    assert len(stored(tmp_path / "m.safetensors")) == 5
    assert same(nm.load(tmp_path / "m.safetensors"), state)


def test_given_patterns(tmp_path):
    net, path = sparse_net(), tmp_path / "m.safetensors"
    nm.save(net, path, patterns={"*": None, "3": "4:8"})
    assert {n: str(s.layout.grouping.pattern) for n, s in stored(path).items() if s.layout} == {"3.weight": "4:8"}
    assert same(nm.load(path), net.state_dict())
    with pytest.raises(ViolationError, match=r"3\.weight.*groups break 1:4"):
        nm.save(net, path, patterns={"3": "1:4"})
    with pytest.raises(PatternError, match=r"3\.weight.*not a multiple of 5"):
        nm.save(net, path, patterns={"3": "2:5"})
    with pytest.raises(PatternError, match="it has no axis 2"):
        nm.save(net, path, patterns={"3": nm.Grouping(nm.Pattern("2:4"), 2)})
    with pytest.raises(PlanError, match=r"names look like 0\.weight, 2\.weight"):
        nm.save(net, path, patterns={"4": "2:4"})
    with pytest.raises(ConfigError):
        nm.save(net, path, packed=False, patterns={"3": "2:4"})
    assert same(nm.load(path), net.state_dict()), "a refused save leaves the old file"
    assert [file.name for file in tmp_path.iterdir()] == ["m.safetensors"]


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [
        ("extra", 3, "no tensor"),
        ("extra", torch.zeros(2, 2).to_sparse(), "plain memory"),
        ("extra", torch.zeros(2, device="meta"), "plain memory"),
        ("extra", torch.zeros(2, dtype=torch.complex128), "no such type"),
        ("a.nm_index", torch.zeros(2), "names are text"),
        ("__metadata__", torch.zeros(2), "names are text"),
    ],
)
def test_what_no_file_can_hold(tmp_path, name, value, match):
    with pytest.raises(StateError, match=match) as caught:
        nm.save({"fine": torch.zeros(2), name: value}, tmp_path / "m.safetensors")
    assert caught.value.where == name
    assert not list(tmp_path.iterdir())


def test_a_file_of_another_model_changes_nothing(tmp_path):
    net = sparse_net()
    nm.save(net, tmp_path / "m.safetensors")
    for other, match in (
        (nn.Sequential(nn.Conv2d(8, 16, 3)), "1.weight: not in the model"),
        (nn.Sequential(*sparse_net(), nn.Linear(2, 2)), "4.weight: not in the file; 4.bias: not in the file"),
        (nn.Sequential(*list(sparse_net())[:3], nn.Linear(16, 7)), r"3.weight: \[7, 16\] in the model, \[7, 32\]"),
        (sparse_net().to("meta"), "to_empty"),
    ):
        before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
        with pytest.raises(StateError, match=match):
            nm.load(tmp_path / "m.safetensors", other)
        assert all(t.is_meta or same_bits(t, before[name]) for name, t in other.state_dict().items())


def test_paths(tmp_path):
    nm.save({"a": torch.ones(2)}, str(tmp_path / "new" / "folder" / "m.safetensors"))
    assert nm.load(str(tmp_path / "new" / "folder" / "m.safetensors"))["a"].tolist() == [1, 1]
    with pytest.raises(ConfigError, match="a folder"):
        nm.save({"a": torch.ones(2)}, tmp_path)
    with pytest.raises(FormatError, match="not a file"):
        nm.load(tmp_path)
    with pytest.raises(FormatError, match="No such file"):
        nm.load(tmp_path / "nothing")


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
        (entry(shape=[2**62, 2**62]), "fc.nm_values.*sizes that a tensor can have"),
        (entry(shape=[2**59, 0]), "fc.nm_values.*do not agree"),
        (entry(shape=[-8, -8]), "fc.nm_values"),
        (entry(shape=[8, True]), "fc.nm_values"),
        (entry(shape=[16, 4]), r"fc.nm_values.*F32 \[16, 4\]: a 2:4 weight of shape \[8, 16\] has F32 \[8, 8\]"),
        (entry(dtype="F64"), "fc.nm_values.*do not agree"),
        (entry(dtype="I32"), "fc.nm_values"),
        (entry(dtype="F4"), "fc.nm_values.*nmlearn reads"),
        (entry(data_offsets=[0, 10**30]), "fc.nm_values.*holds 304 bytes"),
        (entry(data_offsets=[1, 257]), "fc.nm_values"),
        (entry(more=1), "fc.nm_values"),
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
        (lambda header, weights: header["__metadata__"].update(nm_version="2"), "reads version 1; .*newer"),
        (lambda header, weights: header["__metadata__"].update(nm_tied='{"a": "nothing"}'), "'a'.*no such tensor"),
        (lambda header, weights: header["__metadata__"].update(nm_crc32="{}"), "bias'.*without a checksum"),
        (lambda header, weights: header["__metadata__"].update(nm_crc32="[" * 10000), "nm_crc32.*not JSON"),
        (lambda header, weights: header["__metadata__"].pop("nm_format"), "it should be"),
        (lambda header, weights: header["__metadata__"].update(author="me"), "header was changed"),
    ],
)
def test_lying_headers_are_errors_that_name_the_tensor(tmp_path, change, match):
    path = tmp_path / "m.safetensors"
    fc = sparse_bits((8, 16), nm.Grouping(nm.Pattern("2:4"), 1))
    nm.save({"fc": fc, "bias": torch.ones(9)}, path)
    rewritten(path, change)
    with pytest.raises(FormatError, match=match) as caught:
        nm.load(path)
    assert caught.value.where.startswith(str(path)) and caught.value.fix


def test_a_packed_file_that_lost_its_metadata_is_not_taken_for_a_dense_one(tmp_path):
    nm.save(sparse_net(), tmp_path / "m.safetensors")
    save_file(load_file(tmp_path / "m.safetensors"), tmp_path / "lost.safetensors")
    with pytest.raises(FormatError, match="metadata that describes it is missing"):
        nm.load(tmp_path / "lost.safetensors")


def test_one_flipped_bit_is_noticed_and_named(tmp_path):
    path = tmp_path / "m.safetensors"
    nm.save({"fc": sparse_bits((8, 16), nm.Grouping(nm.Pattern("2:4"), 1))}, path)
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    with pytest.raises(FormatError, match=r"'fc\.nm_index'.*the tensor's bytes have another"):
        nm.load(path)


def test_files_of_other_writers_are_read(tmp_path):
    state = {"a": torch.randn(3, 4), "b": torch.arange(5), "c": torch.tensor(True), "d": torch.empty(0, 3)}
    save_file(state, tmp_path / "m.safetensors", metadata={"format": "pt"})
    assert same(nm.load(tmp_path / "m.safetensors"), state)
    (tmp_path / "m.safetensors").write_bytes(struct.pack("<Q", 2) + b"{}")
    assert nm.load(tmp_path / "m.safetensors") == {}


@pytest.mark.parametrize(
    ("raw", "match"),
    [
        (b"", "cut short, or is no safetensors file"),
        (b"1234567", "cut short"),
        (struct.pack("<Q", 2**63) + b"{}", "cut short"),
        (struct.pack("<Q", 2) + b"[]", "not a table of tensors"),
        (struct.pack("<Q", 2) + b"{\xff", "not JSON"),
        (struct.pack("<Q", 100_000) + b"[" * 100_000, "not JSON"),
        (struct.pack("<Q", 15) + b'{"a":{},"a":{}}', "a name is there twice"),
        (struct.pack("<Q", 13) + b'{"\\ud800":{}}', "not JSON"),
        (struct.pack("<Q", 20) + b'{"__metadata__":[1]}', "not a table of text"),
        (struct.pack("<Q", 8) + b'{"a":{}}', "'a'.*exactly dtype, shape and data_offsets"),
        (struct.pack("<Q", 2) + b"{}x", "1 bytes of data.*describes 0"),
    ],
)
def test_what_is_no_safetensors_file(tmp_path, raw, match):
    (tmp_path / "m.safetensors").write_bytes(raw)
    with pytest.raises(FormatError, match=match):
        nm.load(tmp_path / "m.safetensors")


def test_holes_and_overlaps(tmp_path):
    def file(*offsets: tuple[int, int]) -> bytes:
        table = {f"t{i}": {"dtype": "U8", "shape": [b - a], "data_offsets": [a, b]} for i, (a, b) in enumerate(offsets)}
        text = json.dumps(table).encode()
        return struct.pack("<Q", len(text)) + text + bytes(8)

    path = tmp_path / "m.safetensors"
    path.write_bytes(file((4, 8), (0, 4)))
    assert list(nm.load(path)) == ["t0", "t1"]
    for offsets in (((0, 4), (5, 8)), ((0, 5), (4, 8)), ((0, 8), (0, 8)), ((1, 8),), ((0, 7),)):
        path.write_bytes(file(*offsets))
        with pytest.raises(FormatError, match=r"ends at|cut short"):
            nm.load(path)
