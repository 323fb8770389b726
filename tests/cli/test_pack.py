"""nmlearn pack and unpack, and inspect on what they write."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import nmlearn as nm
import toy
from nmlearn import cli
from nmlearn.cli import console
from nmlearn.lab.train import train
from packed_weights import same_bits, sparse_bits


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console.out, "width", 160)
    monkeypatch.setattr(console.err, "width", 160)


@pytest.fixture
def dense(tmp_path: Path) -> Path:
    state = {
        "fc": sparse_bits((256, 256), nm.Grouping(nm.Pattern("2:4"), 1), torch.float16),
        "conv": sparse_bits((32, 64, 3, 3), nm.Grouping(nm.Pattern("1:16"), 1), torch.float16),
        "head": torch.randn(10, 64).half(),
        "bias": torch.randn(10),
    }
    save_file(state, tmp_path / "dense.safetensors", metadata={"format": "pt", "author": "somebody"})
    return tmp_path / "dense.safetensors"


def test_pack_inspect_unpack(dense: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    packed, again = tmp_path / "packed.safetensors", tmp_path / "new" / "again.safetensors"
    assert cli.main(["pack", str(dense), str(packed)]) == 0
    shown = capsys.readouterr().out
    assert "packed 2 of 4 tensors" in shown and f"{packed.stat().st_size:,} bytes" in shown
    assert packed.stat().st_size < 0.48 * dense.stat().st_size
    assert cli.main(["inspect", str(packed)]) == 0
    rows = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines()}
    assert rows["fc"] == ["fc", "256×256", "2:4", "2:4", "combination", *rows["fc"][5:7], "71,680"]
    assert rows["conv"][1:5] == ["32×64×3×3", "1:16", "1:16", "offsets"] and rows["conv"][-1] == "2,880"
    assert rows["head"][2:4] == ["dense", "dense"] and rows["head"][-1] == "1,280"
    assert cli.main(["inspect", str(packed), "--check", "2:4", "--only", "[cf]*"]) == 0
    assert cli.main(["inspect", str(packed), "--check", "2:4"]) == 1
    assert "bad head" in capsys.readouterr().out
    assert cli.main(["unpack", str(packed), str(again)]) == 0
    before, after = load_file(dense), load_file(again)
    assert before.keys() == after.keys() and all(same_bits(before[name], after[name]) for name in before)
    for path in (packed, again):
        with safe_open(path, "pt") as file:
            assert {"format": "pt", "author": "somebody"}.items() <= file.metadata().items()


def test_in_place_and_patterns(dense: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = load_file(dense)
    assert cli.main(["pack", str(dense), str(dense), "--pattern", "*=dense", "--pattern", "fc=4:8"]) == 0
    assert "packed 1 of 4" in capsys.readouterr().out
    assert cli.main(["pack", str(dense), str(dense)]) == 0
    assert "packed 2 of 4" in capsys.readouterr().out
    assert cli.main(["unpack", str(dense), str(dense)]) == 0
    assert all(same_bits(before[name], tensor) for name, tensor in load_file(dense).items())


def test_negative_zeros_are_zeros(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mask = torch.rand(64, 16, 4).argsort(-1).reshape(64, 64) < 2
    nm.save({"fc": torch.randn(64, 64) * mask, "head": torch.randn(4, 4)}, tmp_path / "m", packed=False)
    assert cli.main(["pack", str(tmp_path / "m"), str(tmp_path / "packed")]) == 0
    assert "packed 1 of 2 tensors" in capsys.readouterr().out
    assert cli.main(["inspect", "--check", "2:4", "--only", "fc", str(tmp_path / "packed")]) == 0


def test_a_run_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toy.register()
    train(toy.config(tmp_path / "run", epochs=1))
    assert cli.main(["pack", str(tmp_path / "run"), str(tmp_path / "m.safetensors")]) == 0
    capsys.readouterr()
    assert cli.main(["inspect", str(tmp_path / "m.safetensors"), "--only", "3.weight", "--check", "2:4"]) == 0
    assert cli.main(["inspect", str(tmp_path / "m.safetensors"), "--check"]) == 0  # packed, it names its patterns still
    assert cli.main(["unpack", str(tmp_path / "m.safetensors"), str(tmp_path / "again.safetensors")]) == 0
    assert cli.main(["inspect", "--check", str(tmp_path / "again.safetensors")]) == 0
    dense = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert all(same_bits(tensor, dense[name]) for name, tensor in nm.load(tmp_path / "m.safetensors").items())


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["pack", "nothing", "OUT"], "cannot be read"),
        (["pack", "IN", "OUT", "--pattern", "2:4"], "GLOB=N:M"),
        (["pack", "IN", "OUT", "--pattern", "head=2:4"], "groups break 2:4"),
        (["pack", "IN", "OUT", "--pattern", "no=2:4"], "it matches no"),
        (["pack", "IN", "OUT", "--pattern", "fc=2:x"], "this is not a pattern"),
        (["pack", "IN", "IN/below"], "File exists|Not a directory"),
        (["unpack", "IN", "FOLDER"], "a folder"),
    ],
)
def test_errors(dense: Path, words: list[str], match: str, capsys: pytest.CaptureFixture[str]) -> None:
    places = {"IN": dense, "IN/below": dense / "below", "OUT": dense.with_name("out"), "FOLDER": dense.parent}
    assert cli.main([str(places.get(word, word)) for word in words]) == 2
    shown = capsys.readouterr().err
    assert "to do" in shown and any(part in shown for part in match.split("|"))
    assert [file.name for file in dense.parent.iterdir()] == ["dense.safetensors"]


def test_a_damaged_file_is_an_error(dense: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["pack", str(dense), str(dense)]) == 0
    dense.write_bytes(dense.read_bytes()[:-3])
    for words in (["inspect", str(dense)], ["unpack", str(dense), str(dense)], ["pack", str(dense), str(dense)]):
        assert cli.main(words) == 2
    assert "cut short" in capsys.readouterr().err
