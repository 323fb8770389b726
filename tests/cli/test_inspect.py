"""Patterns found in files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import nmlearn as nm
import toy
from nmlearn import cli
from nmlearn.errors import ConfigError
from nmlearn.lab.train import train
from nmlearn.maths.groups import Grouping
from nmlearn.maths.pattern import Pattern
from nmlearn.maths.zeros import tightest


def sparse(shape: tuple[int, ...], axis: int, pattern: Pattern) -> torch.Tensor:
    """A weight that keeps random N of every M, never less."""
    weight = torch.rand(shape) + 0.1
    view = Grouping(pattern, axis).view(weight)
    keep = torch.rand(view.shape).argsort(-1) < pattern.n
    view *= keep
    return weight


@given(st.sampled_from(["1:4", "2:4", "3:4", "2:8", "4:8", "1:16", "8:16", "1:2", "1:32", "5:64"]), st.booleans())
def test_the_tightest_pattern_is_the_one_put_in(text: str, convolution: bool) -> None:
    pattern = Pattern(text)
    weight = sparse((40, 64, 3, 3) if convolution else (400, 64), 1, pattern)
    assert tightest(weight != 0, 1) == pattern
    assert not Grouping(pattern, 1).violation(weight != 0)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    toy.register()
    folder = tmp_path_factory.mktemp("run")
    train(toy.config(folder, epochs=1))
    return folder


def test_check_says_good_or_bad_by_its_exit_code(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", str(run), "--check"]) == 0
    assert cli.main(["inspect", str(run), "--check", "2:4"]) == 0
    assert "good" in capsys.readouterr().out
    assert cli.main(["inspect", str(run), "--check", "1:4"]) == 1
    shown = capsys.readouterr().out
    assert "bad 3.weight" in shown
    assert "the first is [0, 0:4, 0, 0] with 2 non-zeros" in shown
    assert cli.main(["inspect", "--check", str(run)]) == 0
    file = str(run / "model" / "model.safetensors")
    for words in (["--check", file], [file, "--check"], [file, "--check", "2:4"]):
        assert cli.main(["inspect", *words]) == 0  # the file records which weights are sparse
    tensors = load_file(file)
    tensors["3.weight"][1, 0:3, 2, 1] = 1.0
    save_file(tensors, tmp_path / "touched.safetensors")  # as anybody's: without a word on patterns
    assert cli.main(["inspect", str(tmp_path / "touched.safetensors"), "--check", "2:4", "--only", "8.*"]) == 1
    assert cli.main(["inspect", str(tmp_path / "touched.safetensors"), "--check"]) == 2
    capsys.readouterr()
    assert cli.main(["inspect", str(tmp_path / "touched.safetensors"), "--check", "2:4", "--only", "3.*"]) == 1
    assert "[1, 0:4, 2, 1]" in capsys.readouterr().out


def test_table(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", str(run)]) == 0
    rows = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert rows["3.weight"][1:5] == ["16×16×3×3", "2:4", "2:4", "50.00"]
    assert rows["8.weight"][2:4] == ["dense", "dense"]


def test_tensors_that_are_not_finite_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = torch.ones(4, 8)
    bad[0, :3] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    small = bad.to(torch.float8_e5m2)
    tensors = {"fc.weight": bad, "fc.bias": bad[0].clone(), "fine": torch.ones(4, 8), "small": small}
    nm.save(tensors, tmp_path / "m.safetensors")
    assert nm.load(tmp_path / "m.safetensors")["fc.weight"].isnan().sum() == 1
    assert cli.main(["inspect", str(tmp_path / "m.safetensors")]) == 0
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note")]
    assert notes == [
        "note fc.weight: 3 of 32 values are not finite",
        "note fc.bias: 3 of 8 values are not finite",
        "note small: 3 of 32 values are not finite",
    ]


def test_names_are_no_markup(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file({"[red]w[/]": torch.ones(4, 8)}, tmp_path / "m.safetensors")
    assert cli.main(["inspect", str(tmp_path / "m.safetensors")]) == 0
    assert cli.main(["inspect", str(tmp_path / "m.safetensors"), "--check", "2:4"]) == 1
    assert capsys.readouterr().out.count("[red]w[/]") == 2


def test_stacked_experts_run_along_the_last_dimension(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file({"experts": sparse((3, 16, 32), 2, Pattern("2:4"))}, tmp_path / "m.safetensors")
    assert cli.main(["inspect", str(tmp_path / "m.safetensors"), "--check", "2:4"]) == 0
    capsys.readouterr()


def test_inputs_of_transposed_layers_run_along_axis_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(8, 16, 3), torch.nn.ConvTranspose2d(16, 6, 2))
    for layer, axis in ((net[0], 1), (net[1], 0)):
        layer.weight.data = sparse(tuple(layer.weight.shape), axis, Pattern("2:4"))
    nm.save(net, tmp_path / "packed.safetensors")
    nm.save(net, tmp_path / "plain.safetensors", packed=False)
    for file in ("packed", "plain"):
        assert cli.main(["inspect", str(tmp_path / f"{file}.safetensors"), "--check", "2:4"]) == 0
        shown = capsys.readouterr().out
        assert ("1.weight: along axis 0" in shown) == (file == "plain"), "what is only guessed is said"
        assert cli.main(["inspect", str(tmp_path / f"{file}.safetensors")]) == 0
        assert "2:4 along axis 0" in capsys.readouterr().out
    net[1].weight.data[4:8, 3, 1, 0] = 1.0
    nm.save(net, tmp_path / "bad.safetensors", packed=False)
    assert cli.main(["inspect", str(tmp_path / "bad.safetensors"), "--check", "2:4"]) == 1
    assert "the first is [4:8, 3, 1, 0] with 4 non-zeros" in capsys.readouterr().out


def test_a_bad_group_of_few_inputs_is_named_along_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weight = sparse((64, 12), 1, Pattern("2:4"))
    weight[7, 4:8] = 1.0
    save_file({"fc": weight, "odd": torch.rand(64, 10)}, tmp_path / "m.safetensors")  # 4 does not divide 10: skipped
    assert cli.main(["inspect", str(tmp_path / "m.safetensors"), "--check", "2:4"]) == 1
    shown = capsys.readouterr().out
    assert "bad fc" in shown and "the first is [7, 4:8] with 4 non-zeros" in shown


def test_the_plan_says_the_axis(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model").mkdir()
    wide = torch.zeros(8, 8)
    wide[::2] = 1.0  # 2:4 along axis 0; along axis 1 every second group is full
    save_file({"fc": wide}, tmp_path / "model" / "model.safetensors")
    for axis, code in ((1, 1), (0, 0)):
        row = {"name": "fc", "kind": "Linear", "pattern": "2:4", "axis": axis}
        (tmp_path / "plan.json").write_text(json.dumps({"rows": [row]}))
        assert cli.main(["inspect", str(tmp_path), "--check"]) == code
    assert "the first is [0, 0:4] with 4 non-zeros" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["{", "[1]", '{"w": "4:2"}', '{"w": null}'])
def test_patterns_that_cannot_be_read_are_an_error(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file({"w": torch.ones(4, 8)}, tmp_path / "m.safetensors", metadata={"nmlearn.patterns": text})
    assert cli.main(["inspect", str(tmp_path / "m.safetensors")]) == 2
    assert "nmlearn.patterns" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [["nothing.safetensors"], ["{run}", "--check", "4:2"], ["{run}", "--check", "--only", "no"]]
)
def test_errors(run: Path, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", *(word.format(run=run) for word in words)]) == 2
    assert "to do" in capsys.readouterr().err


def test_without_a_file_the_usage_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["inspect"])
    assert stop.value.code == 2 and "required: path" in capsys.readouterr().err


@pytest.mark.parametrize("within", ["", "runs/"])
def test_a_folder_of_runs_is_not_one_of_them(within: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", str(tmp_path)]) == 2
    assert "no finished run in it" in " ".join(capsys.readouterr().err.split())
    for name in ("b", "a"):
        file = tmp_path / within / name / "model" / "model.safetensors"
        file.parent.mkdir(parents=True)
        save_file({"w": torch.ones(4, 8)}, file)
    (tmp_path / within / "c").mkdir()
    assert cli.main(["--debug", "inspect", str(tmp_path / within / "a")]) == 0
    with pytest.raises(ConfigError) as caught:
        cli.main(["--debug", "inspect", str(tmp_path)])
    assert caught.value.fix == f"name one: {tmp_path / within / 'a'}, {tmp_path / within / 'b'}"


@pytest.mark.parametrize("check", [[], ["--check", "1:4"], ["--check", "2:4"]])
def test_a_terminal_does_not_obey_the_names_in_a_file(
    check: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "\x1b[2J\x9b31m\u202e\r\nw" + "x" * 9999
    weight = sparse((8, 8), 0, Pattern("2:4"))
    nm.save({name: weight}, tmp_path / "m.safetensors", packed=False)
    cli.main(["inspect", str(tmp_path / "m.safetensors"), *check])
    shown = capsys.readouterr().out
    assert all(character.isprintable() or character == "\n" for character in shown)
    assert "\\x1b[2J\\x9b31m\\u202e\\r\\nw" in "".join(shown.split()) and shown.count("x") < 400


def test_errors_show_no_escapes_and_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    patterns = json.dumps({"w": "\x1b[31m" + "9" * 100_000 + ":4"}, ensure_ascii=False)
    save_file({"w": torch.ones(4, 8)}, tmp_path / "m.safetensors", metadata={"nmlearn.patterns": patterns})
    assert cli.main(["inspect", str(tmp_path / "m.safetensors")]) == 2
    shown = capsys.readouterr().err
    assert "\x1b" not in shown and len(shown) < 8000 and "more characters)" in " ".join(shown.split())


ODD = [-1, 7, 1.5, True, [], [1], {}, {"a": 1}, 10**30]
PLAN_ROW = {"name": "fc", "kind": "Linear", "pattern": "2:4", "axis": 1}
PLANS = [{}, {"rows": None}, {"rows": 5}, {"rows": {"a": 1}}, {"rows": [5]}, {"rows": [[]]}, {"rows": [{}]}]
PLANS += [{"rows": [PLAN_ROW | {key: value}]} for key in ("name", "pattern", "axis") for value in ODD]


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_a_plan_that_is_none_is_an_error(plan: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model").mkdir()
    save_file({"fc": sparse((8, 8), 1, Pattern("2:4"))}, tmp_path / "model" / "model.safetensors")
    other = PLAN_ROW | {"name": "not in the file", "axis": 7}
    (tmp_path / "plan.json").write_text(json.dumps({"rows": [PLAN_ROW, other]}))
    assert cli.main(["inspect", str(tmp_path), "--check"]) == 0
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    for check in ([], ["--check"], ["--check", "2:4"]):
        capsys.readouterr()
        assert cli.main(["inspect", str(tmp_path), *check]) == 2
        assert "to do" in capsys.readouterr().err
