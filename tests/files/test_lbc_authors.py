"""nmlearn import-lbc, on files of the layout that the authors' code writes, made here from the paper's description."""

from __future__ import annotations

import argparse
import itertools
import math
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import nmlearn as nm
from nmlearn import cli
from nmlearn.cli import console
from nmlearn.files.model_file import stored
from nmlearn.maths.groups import Grouping

PATTERNS = [(2, 4), (1, 4), (4, 8)]


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console.out, "width", 200)
    monkeypatch.setattr(console.err, "width", 300)


def their_layer(weight: Tensor, n: int, m: int, alive: int = 1) -> dict[str, Tensor]:
    """What a layer of theirs stores when this many combinations have survived in each group."""
    table = torch.zeros(math.comb(m, n), m)
    for row, places in zip(table, itertools.combinations(range(m), n), strict=True):
        row[list(places)] = 1
    scores = torch.randn(weight.numel() // m, len(table))
    for row in scores:
        row[torch.randperm(len(table))[alive:]] = 0
    return {"weight": weight, "alpha": scores, "index_list": table}


def their_mask(layer: dict[str, Tensor]) -> np.ndarray:
    """The mask of their forward pass: in a combination whose score is not zero, moved to the weight's axes."""
    scores, table, shape = layer["alpha"].numpy(), layer["index_list"].numpy(), layer["weight"].shape
    mask = ((scores != 0).astype(int) @ table.astype(int) > 0).reshape(-1)
    if len(shape) == 2:
        return mask.reshape(shape)
    out, inputs, height, width = shape
    return mask.reshape(out, height, width, inputs).transpose(0, 3, 1, 2)


def their_state(n: int, m: int, alive: int = 1) -> OrderedDict[str, Tensor]:
    """A network with a dense first convolution and head, as theirs."""
    state = OrderedDict({"conv1.weight": torch.randn(16, 3, 7, 7), "bn1.running_mean": torch.randn(16)})
    state["bn1.num_batches_tracked"] = torch.tensor(5)
    sparse = {"layer1.0.conv2": (8, 16, 3, 3), "layer1.0.downsample.0": (8, 16, 1, 1), "blocks.0.mlp.fc1": (12, 16)}
    for name, shape in sparse.items():
        state |= {f"{name}.{part}": t for part, t in their_layer(torch.randn(shape), n, m, alive).items()}
    state["blocks.0.mlp.fc1.bias"] = torch.randn(12)
    return state | {"fc.weight": torch.randn(10, 8), "fc.bias": torch.randn(10)}


def resnet_file(path: Path, state: OrderedDict[str, Tensor], prefix: str = "module.") -> Path:
    optimizer = torch.optim.SGD([nn.Parameter(torch.randn(3))], 0.1, momentum=0.9)
    named = OrderedDict((prefix + name, tensor) for name, tensor in state.items())
    best = {"best_acc": torch.tensor(93.2), "best_acc_top1": 77.2}
    torch.save({"state_dict": named, "optimizer": optimizer.state_dict(), "epoch": 120, "args.k": 5} | best, path)
    return path


def layers_of(state: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    names = [name.removesuffix(".alpha") for name in state if name.endswith(".alpha")]
    return {name: {part: state[f"{name}.{part}"] for part in ("weight", "alpha", "index_list")} for name in names}


def imported(*words: Any) -> int:
    return cli.main(["import-lbc", *map(str, words)])


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize(("n", "m"), PATTERNS)
def test_what_is_written_is_what_their_network_computes_with(
    n: int, m: int, prefix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = their_state(n, m)
    source = resnet_file(tmp_path / "model_best.pt", state, prefix)
    assert imported(source, tmp_path / "packed.safetensors", "--strict", "--pattern", f"{n}:{m}") == 0
    shown = capsys.readouterr().out
    assert f"3 weights are {n}:{m}: {(8 * 16 * 9 + 8 * 16 + 12 * 16) // m:,} groups" in shown and "alive" not in shown
    assert imported(source, tmp_path / "dense.safetensors", "--dense") == 0
    packed, dense = nm.load(tmp_path / "packed.safetensors"), load_file(tmp_path / "dense.safetensors")
    layers = layers_of(state)
    expected = {name for name in state if not name.endswith((".alpha", ".index_list"))}
    assert packed.keys() == dense.keys() == expected
    for name in expected:
        layer = layers.get(name.removesuffix(".weight")) if name.endswith(".weight") else None
        ours = dense[name]
        theirs = state[name] if layer is None else torch.from_numpy(np.where(their_mask(layer), state[name].numpy(), 0))
        assert torch.equal(ours, theirs) and torch.equal(packed[name], ours), name
        assert layer is None or not Grouping(f"{n}:{m}", 1).violation(ours != 0)
    layouts = {name: entry.encoding for name, entry in stored(tmp_path / "packed.safetensors").items()}
    assert {str(layouts[f"{name}.weight"].grouping.pattern) for name in layers} == {f"{n}:{m}"}
    assert layouts["conv1.weight"] is None and layouts["fc.weight"] is None


def test_open_groups_take_their_best_and_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = their_state(2, 4)
    layer = layers_of(state)["layer1.0.conv2"]
    scores, table = layer["alpha"], layer["index_list"]
    scores[0] = torch.tensor([0.0, -3.0, -1.0, 0.0, 0.0, -2.0])  # zeros are removed, however low the others are
    scores[1] = torch.tensor([0.5, 0.0, 0.0, 0.5, 0.0, 0.0])  # equal: the first
    scores[2] = 0.0
    source = resnet_file(tmp_path / "model_last.pt", state)
    target = tmp_path / "out.safetensors"
    assert imported(source, target, "--strict") == 2 and not target.exists()
    shown = " ".join(capsys.readouterr().err.split())
    assert "layer1.0.conv2.weight" in shown and "3 groups in 1 layers, with up to 3 combinations alive" in shown
    assert imported(source, target) == 0
    shown = capsys.readouterr().out
    assert "2 groups had several combinations left" in shown and "1 groups had none left" in shown
    ours = nm.load(target)["layer1.0.conv2.weight"]
    first = ours.permute(0, 2, 3, 1).reshape(-1, 4) != 0
    assert torch.equal(first[0], table[2] != 0) and torch.equal(first[1], table[0] != 0) and not first[2].any()
    rest = torch.from_numpy(their_mask(layer)).permute(0, 2, 3, 1).reshape(-1, 4)
    assert torch.equal(first[3:], rest[3:])


def deit_file(path: Path, state: dict[str, Tensor], averaged: dict[str, Tensor], options: object) -> Path:
    torch.save({"model": state, "model_ema": averaged, "epoch": 299, "scaler": {"scale": 1.0}, "args": options}, path)
    return path


def test_an_average_gets_the_masks_of_the_model(tmp_path: Path) -> None:
    state = their_state(2, 4)
    averaged = {name: tensor + 1 for name, tensor in state.items()}  # its scores are zero nowhere
    source = deit_file(tmp_path / "checkpoint.pth", state, averaged, argparse.Namespace(k=5, data_path="somewhere"))
    assert imported(source, tmp_path / "model.safetensors", "--dense") == 0
    assert imported(source, tmp_path / "ema.safetensors", "--dense", "--ema") == 0
    model, ema = (load_file(tmp_path / f"{name}.safetensors") for name in ("model", "ema"))
    for name, tensor in model.items():
        layer = layers_of(state).get(name.removesuffix(".weight"))
        kept = torch.ones_like(tensor).bool() if layer is None else torch.from_numpy(their_mask(layer))
        assert torch.equal(ema[name], torch.where(kept, averaged[name], torch.zeros_like(tensor))), name
    assert imported(source, tmp_path / "x", "--state", "model_ema", "--strict") == 2
    del averaged["fc.bias"]
    source = deit_file(tmp_path / "checkpoint.pth", state, averaged, None)
    assert imported(source, tmp_path / "x", "--ema") == 2


def test_other_names_and_a_bare_state_dict(tmp_path: Path) -> None:
    state = {n.replace("alpha", "score").replace("index_list", "combos"): t for n, t in their_state(1, 4).items()}
    torch.save(state, tmp_path / "state.pt")
    assert imported(tmp_path / "state.pt", tmp_path / "x") == 2
    assert imported(tmp_path / "state.pt", tmp_path / "x", "--scores", "score", "--table", "combos") == 0
    assert not Grouping("1:4", 1).violation(nm.load(tmp_path / "x")["blocks.0.mlp.fc1.weight"] != 0)


LAYER = "layer1.0.conv2"


def cut(state: dict[str, Tensor], part: str, tensor: Tensor | None) -> None:
    state.pop(f"{LAYER}.{part}") if tensor is None else state.update({f"{LAYER}.{part}": tensor})


@pytest.mark.parametrize(
    ("part", "change", "said"),
    [
        ("index_list", lambda t: None, "--table"),
        ("weight", lambda t: None, f"{LAYER}.weight"),
        ("alpha", lambda t: t[1:], "need [288, 6]"),
        ("alpha", lambda t: t[:, :5], "need [288, 6]"),
        ("weight", lambda t: t[:4], "need [144, 6]"),
        ("alpha", lambda t: t.fill_(math.nan), "not finite"),
        ("index_list", lambda t: torch.cat([t[:5], torch.ones(1, 4)]), "its rows contain 2 or 4 ones"),
        ("index_list", lambda t: t * 2, "not a table of zeros and ones"),
        ("index_list", lambda t: t[0], "not a table of zeros and ones"),
        ("index_list", lambda t: torch.zeros(6, 4), "its rows contain 0 ones"),
        ("weight", lambda t: t.reshape(64, 2, 3, 3), "2 input channels, not a multiple of 4"),
        ("weight", lambda t: t.flatten(), "no axis 1"),
        ("weight", lambda t: t[None], "linear or convolve in two dimensions"),
        ("index_list", lambda t: torch.eye(70)[:6], f"{LAYER}.index_list"),
        ("alpha", lambda t: None, f"{LAYER}.index_list needs it"),
    ],
)
def test_what_does_not_fit_is_named(
    part: str, change: Any, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = their_state(2, 4)
    cut(state, part, change(state[f"{LAYER}.{part}"]))
    assert imported(resnet_file(tmp_path / "in.pt", state), tmp_path / "out") == 2
    shown = " ".join(capsys.readouterr().err.split())
    assert said in shown and LAYER in shown and not (tmp_path / "out").exists()


def jagged(t: Tensor) -> Tensor:
    return torch.nested.nested_tensor([t[0], t[1]])


def quantized(t: Tensor) -> Tensor:
    return torch.quantize_per_tensor(t.float(), 0.1, 0, torch.quint8)


NO_VALUES: list[Any] = ["text", [0.5, 0.5], None, 3, {"a": 1}, jagged, quantized]
NO_VALUES += [lambda t: t.to("meta"), lambda t: t.to_sparse(), lambda t: t.flatten(1).to_sparse_csr()]


@pytest.mark.filterwarnings("ignore:.*(nested|Sparse CSR|quantize|TypedStorage)")
@pytest.mark.parametrize("made", NO_VALUES)
@pytest.mark.parametrize(
    ("part", "average"), [*itertools.product(["weight", "alpha", "index_list", "bias"], [False]), ("weight", True)]
)
def test_what_is_no_tensor_in_plain_memory_is_named(
    part: str, made: Any, average: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is left out in silence: a layer without its scores would be written dense."""
    state = their_state(2, 4)
    odd = state | {f"{LAYER}.{part}": made(torch.randn(8, 16)) if callable(made) else made}
    source = deit_file(tmp_path / "in.pt", state if average else odd, odd if average else state, None)
    assert imported(source, tmp_path / "out", *(["--ema"] if average else [])) == 2
    shown = " ".join(capsys.readouterr().err.split())
    place = f"{'model_ema' if average else 'model'}: {LAYER}.{part}"
    assert place in shown and ("plain memory" in shown or "not a tensor" in shown)
    assert "to do" in shown and not (tmp_path / "out").exists()


TYPES = [getattr(torch, name) for name in ("complex64", "uint16", "int64", "bool")]
SMALL = [torch.float8_e4m3fn, torch.float8_e5m2, torch.float16, torch.bfloat16, torch.float64]


@pytest.mark.parametrize(
    ("part", "dtype", "words"),
    [(part, dtype, ["--dense"]) for part in ("weight", "alpha") for dtype in TYPES]
    + [("index_list", torch.complex64, []), ("weight", torch.complex64, ["--ema"]), ("weight", torch.int64, ["--ema"])],
)
def test_what_is_not_floating_point_is_named(
    part: str, dtype: torch.dtype, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = their_state(2, 4)
    odd = state | {f"{LAYER}.{part}": state[f"{LAYER}.{part}"].to(dtype)}
    source = deit_file(tmp_path / "in.pt", state if "--ema" in words else odd, odd, None)
    assert imported(source, tmp_path / "out", *words) == 2
    shown = " ".join(capsys.readouterr().err.split())
    assert f"{LAYER}.{part}" in shown and str(dtype) in shown and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("part", "dtype"),
    [*itertools.product(["weight", "alpha", "index_list"], SMALL), *(("index_list", dtype) for dtype in TYPES[1:])],
)
def test_other_types_give_the_same_mask(part: str, dtype: torch.dtype, tmp_path: Path) -> None:
    state = their_state(2, 4)
    mask = torch.from_numpy(their_mask(layers_of(state)[LAYER]))
    state[f"{LAYER}.{part}"] = state[f"{LAYER}.{part}"].to(dtype)
    assert imported(resnet_file(tmp_path / "in.pt", state), tmp_path / "out", "--strict") == 0
    weight = state[f"{LAYER}.weight"]
    expected = torch.where(mask, weight.double(), 0.0).to(weight.dtype)
    assert torch.equal(nm.load(tmp_path / "out")[f"{LAYER}.weight"].double(), expected.double())


@pytest.mark.parametrize("factor", [1e-60, 1e200])
def test_scores_in_float64_are_as_alive_as_they_were(factor: float, tmp_path: Path) -> None:
    state = their_state(2, 4)
    mask = torch.from_numpy(their_mask(layers_of(state)[LAYER]))
    state[f"{LAYER}.alpha"] = state[f"{LAYER}.alpha"].double() * factor
    assert imported(resnet_file(tmp_path / "in.pt", state), tmp_path / "out", "--strict") == 0
    assert torch.equal(nm.load(tmp_path / "out")[f"{LAYER}.weight"] != 0, mask)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({1: torch.ones(3)}, "state_dict: int"),
        ({("a", "b"): torch.ones(3)}, "state_dict: tuple"),
        ({None: torch.ones(3)}, "state_dict: NoneType"),
        ({"fc.bias": torch.ones(10), "module.fc.bias": torch.ones(10)}, "module.fc.bias"),
        ({"a\udcff": torch.ones(3)}, "a\\udcff"),
    ],
)
def test_names_that_are_no_names_of_a_model(
    more: dict[Any, Tensor], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"state_dict": their_state(2, 4) | more}, tmp_path / "in.pt")
    assert imported(tmp_path / "in.pt", tmp_path / "out") == 2
    shown = " ".join(capsys.readouterr().err.split())
    assert said in shown and "to do" in shown and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--scores", "weight"], "--scores and --table"),
        (["--table", "weight"], "--scores and --table"),
        (["--table", "alpha"], "--scores and --table"),
        (["--scores", "index_list", "--table", "alpha"], "the names of a layer's scores and of its table"),
        (["--scores", "bias"], "the names of a layer's scores and of its table"),
        (["--scores", "x"], "give the name of the scores: --scores"),
        (["--table", "x"], "--table"),
        (["--state", ""], "no named tensors under ''"),
        (["--pattern", ""], "this is not a pattern N:M"),
    ],
)
def test_other_words_are_explained(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert imported(resnet_file(tmp_path / "in.pt", their_state(2, 4)), tmp_path / "out", *words) == 2
    assert said in " ".join(capsys.readouterr().err.split()) and not (tmp_path / "out").exists()


def test_an_entry_that_is_not_found_by_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"net": their_state(2, 4), "best": torch.tensor(1.0)}, tmp_path / "in.pt")
    assert imported(tmp_path / "in.pt", tmp_path / "out") == 2
    shown = " ".join(capsys.readouterr().err.split())
    assert "checkpoint: net" in shown and "the entry that contains it: --state" in shown
    assert imported(tmp_path / "in.pt", tmp_path / "out", "--state", "net") == 0


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("raise SystemExit('code was run')",)


def test_other_files_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"state_dict": their_state(2, 4), "args": Evil()}, tmp_path / "evil.pt")
    (tmp_path / "text.pt").write_text("not a checkpoint")
    (tmp_path / "empty.pt").write_bytes(b"")
    torch.save({"epoch": 3}, tmp_path / "nothing.pt")
    torch.save([torch.randn(3)], tmp_path / "list.pt")
    torch.save({"state_dict": {"fc.weight": torch.randn(4, 4)}}, tmp_path / "plain.pt")
    whole = resnet_file(tmp_path / "whole.pt", their_state(2, 4)).read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    wrong = {"nothing": "no named tensors", "list": "no named tensors", "plain": "no layer has scores"}
    for name in ("evil", "text", "empty", "nothing", "list", "plain", "cut", "missing"):
        assert imported(tmp_path / f"{name}.pt", tmp_path / "out") == 2, name
        shown = " ".join(capsys.readouterr().err.split())
        assert "weights_only" not in shown and ("exec, which only running code" in shown) == (name == "evil")
        assert wrong.get(name, "cannot be read as tensors" if name != "missing" else "No such file") in shown, name
    assert imported(tmp_path / "whole.pt", tmp_path / "out", "--pattern", "1:4") == 2
    assert "2:4, not 1:4" in capsys.readouterr().err
    assert imported(tmp_path / "whole.pt", tmp_path / "out", "--state", "optimizer") == 2
    assert not (tmp_path / "out").exists()
