"""nm.save and nm.load restore a model exactly, here and in a reader that knows only docs/format.md."""

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
from torch.nn.utils import prune

import independent_reader
import nets
import nmlearn as nm
from nmlearn.errors import ConfigError, FormatError, PatternError, PlanError, StateError, ViolationError
from nmlearn.files.formats.container import NAMES
from nmlearn.files.model_file import convert, notes, stored
from packed_weights import DTYPES, same_bits, small_patterns, sparse_bits, unsigned_zeros, weights

DATA = Path(__file__).parent / "data"


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
    assert {name for name, one in stored(path).items() if one.encoding} == state.keys() - {"steps", "flags"}
    loaded = nm.load(path)
    state |= {name: unsigned_zeros(tensor) for name, tensor in state.items() if name.startswith("layers")}
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
    layouts = {name: one.encoding for name, one in stored(tmp_path / "m.safetensors").items()}
    assert layouts.pop("dense") is None
    assert {name: str(layout.grouping.pattern) for name, layout in layouts.items()} == {name: name for name in found}
    assert same(nm.load(tmp_path / "m.safetensors"), found | {"dense": torch.ones(4, 8, dtype=dtype)})


def test_patterns_that_nobody_asked_for_are_not_packed(tmp_path):
    def scattered(share):
        return torch.randn(64, 256).masked_fill_(torch.rand(64, 256) < share, 0)

    def regular(name):
        weight, grouping = torch.randn(64, 256), nm.Grouping(nm.Pattern(name), 1)
        view = grouping.view(weight)
        view.masked_fill_(torch.rand(view.shape).argsort(-1) >= grouping.pattern.n, 0)
        return weight

    full = {name: regular(name) for name in ("3:4", "5:8", "15:16", "1:2")}
    nm.save(full | {"some": scattered(0.4), "most": scattered(0.97)}, tmp_path / "m.safetensors")
    found = {
        name: str(one.encoding.grouping.pattern)
        for name, one in stored(tmp_path / "m.safetensors").items()
        if one.encoding
    }
    assert found.pop("most").endswith(":64"), "sparse enough to gain from it"
    assert found == {"3:4": "3:4", "5:8": "5:8", "1:2": "1:2"}, "15:16 saves less than a tenth"
    nm.save(full, tmp_path / "m.safetensors", patterns={"15:16": "15:16"})
    assert str(stored(tmp_path / "m.safetensors")["15:16"].encoding.grouping.pattern) == "15:16"


@pytest.mark.parametrize("packed", [True, False])
def test_a_plan_that_is_expected(tmp_path, packed):
    path, sparsifier = tmp_path / "m.safetensors", nets.learn(nm.LBC("1:4"))
    sparsifier.finalize()
    model, rows = sparsifier.model, sparsifier.plan.sparse
    nm.save(model, path, packed, expect=sparsifier.plan)
    before, state = path.read_bytes(), dict(model.state_dict())
    for row in rows[1:]:
        state[row.name] = torch.ones(row.shape)
    with pytest.raises(ViolationError) as caught:
        nm.save(state, path, packed, expect=sparsifier.plan)
    assert caught.value.where == rows[1].name
    assert f"{len(rows) - 1} of {len(rows)} planned weights are less sparse" in caught.value.wrong
    del state[rows[0].name]
    with pytest.raises(PlanError, match="the state does not") as caught:
        nm.save(state, path, packed, expect=sparsifier.plan)
    assert caught.value.where == rows[0].name and path.read_bytes() == before


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_weight_that_was_multiplied_by_its_mask_is_packed(tmp_path, dtype):
    """As torch.nn.utils.prune does it: half of what is pruned is -0.0."""
    weight, path = torch.randn(64, 64).to(dtype), tmp_path / "m.safetensors"
    mask = torch.rand(64, 16, 4).argsort(-1).reshape(64, 64) < 2
    pruned = (weight.float() * mask).to(dtype)
    assert not same_bits(pruned, unsigned_zeros(pruned))
    nm.save({"fc": pruned}, path)
    assert str(stored(path)["fc"].encoding.grouping.pattern) == "2:4"
    assert same_bits(nm.load(path)["fc"], unsigned_zeros(pruned)) and torch.equal(nm.load(path)["fc"], pruned)
    nm.save({"fc": pruned}, path, patterns={"fc": None})
    assert same_bits(nm.load(path)["fc"], pruned), "what is not packed keeps its signs"
    nm.save({"fc": pruned}, path, packed=False)
    assert same_bits(nm.load(path)["fc"], pruned)


def test_a_module_pruned_by_torch(tmp_path):
    layer = nn.Linear(64, 64)
    mask = torch.rand(64, 16, 4).argsort(-1).reshape(64, 64) < 2
    prune.custom_from_mask(layer, "weight", mask)
    prune.remove(layer, "weight")
    nm.save(layer, tmp_path / "m.safetensors")
    one = stored(tmp_path / "m.safetensors")["weight"]
    assert str(one.encoding.grouping.pattern) == "2:4" and one.nbytes < 0.53 * layer.weight.nbytes


def test_a_finished_model(tmp_path):
    sparsifier = nets.learn(nm.LBC("1:4"))
    sparsifier.finalize()
    nm.save(sparsifier.model, tmp_path / "m.safetensors")
    layouts = {name: one.encoding for name, one in stored(tmp_path / "m.safetensors").items()}
    for row in sparsifier.plan.sparse:
        assert layouts[row.name].grouping == row.grouping
    other = nets.convnet(seed=1)
    nm.load(tmp_path / "m.safetensors", other)
    assert nets.same(nets.snapshot(other), nets.snapshot(sparsifier.model))


@pytest.mark.parametrize(("text", "share"), [("2:4", 0.548), ("1:16", 0.0785)])
def test_a_whole_file_is_within_a_hundredth_of_its_bound(tmp_path, text, share):
    weight = sparse_bits((1024, 1024), nm.Grouping(nm.Pattern(text), 1), torch.float16)
    nm.save({"fc": weight}, tmp_path / "m.safetensors")
    layout = stored(tmp_path / "m.safetensors")["fc"].encoding
    size = (tmp_path / "m.safetensors").stat().st_size
    assert size <= 1.01 * (layout.groups * layout.grouping.pattern.n * 16 + layout.index_bits) / 8
    assert size <= share * weight.nbytes


def test_a_model_says_where_its_inputs_run(tmp_path):
    net = sparse_net()
    nm.save(net, tmp_path / "packed.safetensors")
    nm.save(net, tmp_path / "dense.safetensors", packed=False)
    layouts = {name: one.encoding for name, one in stored(tmp_path / "packed.safetensors").items() if one.encoding}
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
    for wrong in ({"nm_version": "1"}, {"author": 1}, {1: "author"}, {"author": "\ud800"}):
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
    assert {n: str(s.encoding.grouping.pattern) for n, s in stored(path).items() if s.encoding} == {"3.weight": "4:8"}
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
        ("extra", 3, "not a tensor"),
        ("extra", torch.zeros(2, 2).to_sparse(), "plain memory"),
        ("extra", torch.zeros(2, device="meta"), "plain memory"),
        ("extra", torch.zeros(2, dtype=torch.complex128), "no such type"),
        ("a.nm_index", torch.zeros(2), "a name must be text"),
        ("__metadata__", torch.zeros(2), "a name must be text"),
        ("half a pair: \ud800", torch.zeros(2), "a name must be text"),
    ],
)
def test_what_no_file_can_store(tmp_path, name, value, match):
    with pytest.raises(StateError, match=match) as caught:
        nm.save({"fine": torch.zeros(2), name: value}, tmp_path / "m.safetensors")
    assert caught.value.where == name
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore:.*nested")
def test_a_nested_tensor_and_a_name_that_has_no_end_are_refused_too(tmp_path):
    with pytest.raises(StateError, match=r"extra: given torch\.float32: it is not plain memory"):
        nm.save({"extra": torch.nested.nested_tensor([torch.zeros(2)])}, tmp_path / "m.safetensors")
    with pytest.raises(StateError, match=r"int: .* a name must be text"):  # Python refuses to write the number
        nm.save({10**5000: torch.zeros(2)}, tmp_path / "m.safetensors")
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


def test_files_of_version_1_are_read_bit_for_bit(tmp_path):
    """All three codes, several types, an axis of 0, a tie, and kept zeros with a sign."""
    path, whole = DATA / "version1.safetensors", load_file(DATA / "version1_dense.safetensors")
    assert json.loads(safe_open(path, "pt").metadata()["nm_version"]) == 1
    assert {one.encoding.code for one in stored(path).values() if one.encoding} == {
        "offsets", "bitmask", "combination"
    }  # fmt: skip
    found = nm.load(path)
    assert same(found, whole) and found["tied"] is found["layers.0"]
    assert any(not same_bits(found[f"layers.{i}"], unsigned_zeros(found[f"layers.{i}"])) for i in range(7))
    assert notes(path) == {"format": "pt", "author": "somebody \u00e9"}
    convert(path, tmp_path / "m.safetensors")
    with safe_open(tmp_path / "m.safetensors", "pt") as file:
        assert file.metadata()["nm_version"] == "2"
    again = nm.load(tmp_path / "m.safetensors")
    repacked = {name for name, one in stored(tmp_path / "m.safetensors").items() if one.encoding} | {"tied"}
    assert repacked == whole.keys() - {"bias", "steps", "flags", "layers.2", "layers.5"}, "not worth it or an accident"
    assert same(again, {n: unsigned_zeros(t) if n in repacked else t for n, t in whole.items()})
    raw = path.read_bytes()
    for place in range(0, len(raw), 3):
        (tmp_path / "bad").write_bytes(raw[:place] + bytes([raw[place] ^ 1 << place % 8]) + raw[place + 1 :])
        with pytest.raises(FormatError):
            nm.load(tmp_path / "bad")


@pytest.mark.parametrize("packed", [True, False])
def test_the_same_contents_are_the_same_bytes(tmp_path, packed):
    metadata = {name: name for name in ("b", "a", "d", "c", '\u00e9\n"\\\x01\x7f')}
    for i in range(4):
        nm.save(sparse_net(), tmp_path / f"{i}", packed=packed, metadata=metadata)
        assert (tmp_path / f"{i}").read_bytes() == (tmp_path / "0").read_bytes()
    assert notes(tmp_path / "0") == {"format": "pt"} | metadata


def test_files_of_other_writers_are_read(tmp_path):
    state = {"a": torch.randn(3, 4), "b": torch.arange(5), "c": torch.tensor(True), "d": torch.empty(0, 3)}
    save_file(state, tmp_path / "m.safetensors", metadata={"format": "pt"})
    assert same(nm.load(tmp_path / "m.safetensors"), state)
    (tmp_path / "m.safetensors").write_bytes(struct.pack("<Q", 2) + b"{}")
    assert nm.load(tmp_path / "m.safetensors") == {}
