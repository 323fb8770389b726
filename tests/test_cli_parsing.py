"""Command line -> configuration, and how the command line answers."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from nmlearn import __version__, cli
from nmlearn.cli import parsing
from nmlearn.errors import ConfigError, NMLearnError
from nmlearn.train import CompareConfig, TrainConfig, recipe


def parse(*words: str) -> TrainConfig:
    return parsing.parse(TrainConfig, "train", list(words), "")


def test_the_command_line_lies_over_the_recipe(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(
        "epochs: 3\nmethod: {pattern: 1:4, options: {end: 0.4}}\ndata: {options: {train_limit: 5}}\noptim: {lr: 1e-3}"
    )
    config = parse(
        "--config", str(path), "--epochs", "4", "--data.options.eval_limit", "7", "--method.rules.fc", "null"
    )
    assert (config.epochs, config.optim.lr, config.method.pattern) == (4, 0.001, "1:4")
    assert config.data.options == {"train_limit": 5, "eval_limit": 7}
    assert config.method.options == {"end": 0.4}
    assert config.method.rules == {"fc": None}
    assert parse(f"--config={path}").epochs == 3


def test_patterns_on_the_command_line() -> None:
    assert parse("--method.pattern", "2:4").method.pattern == "2:4"
    assert parse("--method.rules", '{"layer1.*": 1:4, "fc": null}').method.rules == {"layer1.*": "1:4", "fc": None}
    words = ["--patterns", "[2:4, 1:16]", "--seeds", "[1, 2]", "--train.epochs", "2", "--options.lbc.end", "0.6"]
    config = parsing.parse(CompareConfig, "compare", words, "")
    assert (config.patterns, config.seeds, config.train.epochs) == (("2:4", "1:16"), (1, 2), 2)
    assert config.options == {"lbc": {"end": 0.6}}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--epocs", "3"], "did you mean --epochs?"),
        (["--method.patern", "2:4"], "did you mean --method.pattern?"),
        (["--epoch", "3"], "did you mean --epochs?"),
        (["--epochs", "three"], "--epochs"),
        (["--epochs", "0"], "at least 1"),
        (["--method.pattern", "124"], "method.pattern"),
        (["--method.pattern", "4:2"], "method.pattern"),
        (["--precision", "fp16"], "precision"),
        (["stray"], "stray"),
    ],
)
def test_wrong_words(words: list[str], said: str) -> None:
    with pytest.raises(NMLearnError) as caught:
        parse(*words)
    assert said in str(caught.value)


def test_wrong_recipes(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    for text, said in (("epocs: 3", "did you mean epochs?"), ("method: {pattern: 124}", "quote the pattern")):
        path.write_text(text)
        with pytest.raises(ConfigError, match=said):
            parse("--config", str(path))
    with pytest.raises(ConfigError, match="quote the pattern"):
        parsing.parse(CompareConfig, "compare", ["--patterns", "[124]"], "")


def test_print_config_prints_a_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse("--method.pattern", "1:16", "--optim.lr", "1e-4", "--print_config")
    assert caught.value.code == 0
    config = recipe.build(TrainConfig, recipe.loads(capsys.readouterr().out))
    assert (config.method.pattern, config.optim.lr) == ("1:16", 1e-4)


@pytest.mark.parametrize("words", [["--help"], [], ["--version"], *([name, "--help"] for name in cli.COMMANDS)])
def test_help_needs_no_torch(words: list[str]) -> None:
    code = f"""
import sys
from nmlearn.cli import main
try:
    code = main({words!r})
except SystemExit as stop:
    code = stop.code
sys.exit(code or (3 if "torch" in sys.modules or "numpy" in sys.modules else 0))
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "nmlearn" in done.stdout


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"]])
def test_help_is_quick(words: list[str]) -> None:
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "nmlearn", *words], capture_output=True, check=True)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 1.5  # under half a second on a machine with nothing else to do


def test_errors_are_shown_in_four_parts(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["trian"]) == 2
    shown = capsys.readouterr().err
    for part in ("ConfigError", "where", "given", "trian", "wrong", "to do", "nmlearn train?"):
        assert part in shown
    with pytest.raises(ConfigError):
        cli.main(["--debug", "trian"])


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert __version__ in capsys.readouterr().out


def test_interrupted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(words: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_run", interrupt)
    assert cli.main(["train"]) == 130
    assert "goes on" in capsys.readouterr().err
