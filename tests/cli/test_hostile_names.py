"""Names that a terminal would obey, in files and on the command line: no command prints them as they are."""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import nmlearn as nm
import toy
from nmlearn import cli
from nmlearn.cli import console
from nmlearn.errors import NMLearnError
from nmlearn.lab import data, models
from nmlearn.lab.train import CompareConfig, recipe
from places import ROOT

# A title, a cleared screen, the beginning of the line, text that runs backwards, a line that we did not write, an
# 8-bit control sequence, a backspace, markup and an emoji of rich.
NAME = "\x1b]0;x\x07\x1b[2J\r\u202e\u2066\nok\x9b31m\b[red]:smile:"
SHOWN = r"\x1b]0;x\x07\x1b[2J\r\u202e\u2066\nok\x9b31m\x08[red]:smile:"


TOY = ("--data", "toy", "--steps", "0", "--batch_size", "10", "--accelerate", "false")


def hostile_net(classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    net = nn.Sequential(nn.Flatten())
    net.add_module(NAME, nn.Linear(input_shape[0] * toy.SIZE**2, 16))
    net.add_module("1", nn.Linear(16, classes))
    return net


@pytest.fixture(autouse=True)
def _toys(monkeypatch: pytest.MonkeyPatch) -> None:
    toy.register()
    monkeypatch.setitem(models.MODELS, "hostile", hostile_net)
    monkeypatch.setattr(console.out, "width", 600)
    monkeypatch.setattr(console.err, "width", 600)


def printed(capsys: pytest.CaptureFixture[str]) -> str:
    """What was printed, in which nothing obeys, without spaces and frames."""
    captured = capsys.readouterr()
    text = captured.out + captured.err
    assert [c for c in text if not c.isprintable() and c != "\n"] == []
    assert "\nok" not in text
    return re.sub(r"[\s│─╭╮╰╯]", "", text)


def shown(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """What a command prints."""
    with contextlib.suppress(SystemExit):  # argparse
        cli.main([str(word) for word in words])
    return printed(capsys)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A model file with an odd name of its own and hostile names in it."""
    bad = torch.full((4, 8), torch.nan)
    along_0 = torch.zeros(8, 8)
    along_0[::2] = 1.0  # 2:4 along axis 0 only
    path = tmp_path / f"{NAME}.safetensors"
    save_file({NAME: along_0, f"nan{NAME}": bad, f"bias{NAME}": bad[0].clone()}, path, metadata={NAME: NAME})
    return path


def test_inspect(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, "inspect", file)
    assert text.count(SHOWN) == 4 and f"bias{SHOWN}:8of8valuesarenotfinite" in text
    assert f"bad{SHOWN}" in shown(capsys, "inspect", file, "--check", "1:4")
    assert f"{SHOWN}:alongaxis0" in shown(capsys, "inspect", file, "--check", "2:4", "--only", "[!n]*")
    for patterns in ({NAME: NAME}, [NAME]):
        path = tmp_path / "patterns.safetensors"
        save_file({"w": torch.ones(4, 8)}, path, metadata={"nmlearn.patterns": json.dumps(patterns)})
        assert "todo" in shown(capsys, "inspect", path)
    (tmp_path / "plan.json").write_text(json.dumps({"rows": [{"name": NAME, "pattern": NAME}]}))
    (tmp_path / "model").mkdir()
    save_file({NAME: torch.ones(4, 8)}, tmp_path / "model" / "model.safetensors")
    assert SHOWN in shown(capsys, "inspect", tmp_path)


def test_pack_and_unpack(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / f"packed{NAME}"
    assert f"writtenPATH{SHOWN}" in shown(capsys, "pack", file, target).replace(f"{tmp_path}/packed", "PATH")
    assert f"writtenPATH{SHOWN}" in shown(capsys, "unpack", target, tmp_path / NAME).replace(f"{tmp_path}/", "PATH")
    assert SHOWN in shown(capsys, "pack", file, target, "--pattern", f"{NAME}=2:4")
    assert SHOWN in shown(capsys, "inspect", target)
    raw = target.read_bytes()
    target.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    assert SHOWN in shown(capsys, "unpack", target, tmp_path / "again")


def test_a_checkpoint_of_the_authors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layer = {f"{NAME}.weight": torch.ones(2, 8), f"{NAME}.alpha": torch.ones(9, 2), f"{NAME}.index_list": torch.eye(4)}
    torch.save({"state_dict": layer}, tmp_path / NAME)
    assert SHOWN in shown(capsys, "import-lbc", tmp_path / NAME, tmp_path / "out")
    torch.save({NAME: layer}, tmp_path / NAME)
    assert SHOWN in shown(capsys, "import-lbc", tmp_path / NAME, tmp_path / "out")


def test_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / NAME
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe.dumps(toy.config(folder, model="hostile", epochs=1)))
    assert SHOWN in shown(capsys, "train", "--config", path)
    assert SHOWN in shown(capsys, "train", "--config", path)  # had already finished
    assert SHOWN in shown(capsys, "inspect", folder)
    assert SHOWN in shown(capsys, "report", folder)
    assert SHOWN in shown(capsys, "plan", "--config", path)
    assert SHOWN in shown(capsys, "plan", "--config", path, "--method.rules", json.dumps({NAME: "2:4"}))
    assert SHOWN in shown(capsys, "sparsify", "hostile", *TOY, "--out", tmp_path / f"sparse{NAME}")
    assert SHOWN in shown(capsys, "plan", "--config", path, "--method.rules", json.dumps({f"{NAME}.*": None}))


def test_export(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """torch exports no module of such a name, so what the command shows is made here."""
    from nmlearn.cli import export
    from nmlearn.integrations.onnx import OnnxExport
    from nmlearn.integrations.onnx_weights import OnnxWeight

    weight = OnnxWeight(NAME, nm.Pattern("2:4"), f"val{NAME}", NAME, (4, 8), 1, NAME, True)
    export._show(OnnxExport(tmp_path / NAME, 20, (weight,), (NAME,), None))
    assert printed(capsys).count(SHOWN) == 6
    assert SHOWN in shown(capsys, "export", tmp_path / NAME)


def test_a_failed_run_of_a_comparison(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("nmlearn.lab.train.compare")
    code = [sys.executable, "-c", f"exit({NAME!r})"]
    monkeypatch.setattr(module, "compare", functools.partial(module.compare, command=lambda path: code))
    base = replace(toy.config(tmp_path, epochs=1), out=None)
    config = CompareConfig("toys", base, methods=("lbc",), out=str(tmp_path / NAME), results=str(tmp_path / "results"))
    (tmp_path / "toys.yaml").write_text(recipe.dumps(config))
    text = shown(capsys, "compare", "--config", tmp_path / "toys.yaml")
    assert "failed" in text and SHOWN in text


@pytest.mark.parametrize("rank", ["0", "1"])
def test_an_error(
    rank: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", rank)
    (tmp_path / "folder").mkdir()
    for words in (["inspect", NAME], ["inspect", tmp_path / "folder" / NAME], ["report", NAME], ["plan", NAME], [NAME]):
        assert SHOWN in shown(capsys, *words)
    for option in ("--model", "--data", "--method", "--pattern", "--config", f"--{NAME}"):
        assert SHOWN in shown(capsys, "plan", option, NAME)


@pytest.mark.parametrize("command", ["inspect", "pack", "unpack", "import-lbc", "report", "export", "bench", "doctor"])
def test_words_too_many(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """As where a shell's pattern stands for several files."""
    assert SHOWN in shown(capsys, command, "a", "b", f"--{NAME}")


def test_doctor(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def missing(path: object = None) -> None:
        raise NMLearnError(where=NAME, given=NAME, wrong=NAME, fix=NAME)

    monkeypatch.setattr(data, "DATASETS", {"toy": missing})
    monkeypatch.setenv("NMLEARN_KERNELS", str(tmp_path / NAME))
    assert SHOWN.replace(r"\n", "") in shown(capsys, "doctor").replace(r"\n", "")


def test_bars(capsys: pytest.CaptureFixture[str]) -> None:
    from nmlearn.cli.bars import CompareBar

    with CompareBar(1) as bar:
        bar({"run": NAME, "event": "state", "state": "started"})
        bar({"run": NAME, "event": "progress", "step": 1, "total_steps": 2})
        console.out.print(bar._bar.get_renderable())  # as a terminal shows it
        bar({"run": NAME, "event": "state", "state": "failed", "error": NAME})
    assert printed(capsys).count(SHOWN) >= 3


def test_what_rich_shows_as_it_is_is_made_where_it_is_escaped() -> None:
    """No module but `console` makes a `Text` or a `Console` of rich: neither escapes anything itself."""
    for path in (ROOT / "src/nmlearn/cli").glob("*.py"):
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        made = [call.lineno for call in calls if re.match(r"(\w+\.)*(Text|Console)\b", ast.unparse(call.func))]
        assert not made or path.stem == "console", f"{path}: {made}"
