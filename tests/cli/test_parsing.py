"""Command line -> configuration, and how the command line answers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nmlearn import __version__, cli
from nmlearn.cli import parsing, plan
from nmlearn.errors import ConfigError, NMLearnError
from nmlearn.lab.train import CompareConfig, TrainConfig, recipe


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
        (["--epochs", "1.5"], "must be a whole number"),
        (["--optim.lr", "high"], "must be a number"),
        (["--optim.clip_norm=high"], "must be a number, or null"),
        (["--precision", "fp16"], "choose from fp32, bf16"),
        (["--method.rules", "3"], "must be a mapping"),
        (["--train.data", "toy.yaml"], "unknown option"),
    ],
)
def test_wrong_words(words: list[str], said: str) -> None:
    with pytest.raises(NMLearnError) as caught:
        parse(*words)
    assert said in str(caught.value)


def test_lists_are_asked_for_plainly() -> None:
    for option, said in (("patterns", r"'\[2:4, 1:4\]'"), ("seeds", r"each a whole number.*'\[1, 2, 3\]'")):
        with pytest.raises(ConfigError, match=said):
            parsing.parse(CompareConfig, "compare", [f"--{option}", "2:4"], "")


def test_the_obvious_words_are_taken() -> None:
    words = ["--model", "resnet20", "--data=cifar10", "--method", "srste", "--pattern", "1:8", "--optim", "adamw"]
    config = parse(*words)
    assert (config.model.name, config.data.name, config.optim.name) == ("resnet20", "cifar10", "adamw")
    assert (config.method.name, config.method.pattern) == ("srste", "1:8")
    compared = parsing.parse(CompareConfig, "compare", ["--model", "resnet20"], "")
    assert compared.train.model.name == "resnet20"
    for word in ("--method", "--pattern", "--train"):
        with pytest.raises(ConfigError, match="did you mean"):
            parsing.parse(CompareConfig, "compare", [word, "lbc"], "")


def test_a_recipe_of_the_other_command(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    for kind, text, other in ((TrainConfig, "methods: [lbc]", "compare"), (CompareConfig, "epochs: 3", "train")):
        path.write_text(text)
        with pytest.raises(ConfigError, match=f"this is a recipe for nmlearn {other}"):
            parsing.parse(kind, "x", ["--config", str(path)], "")


def test_plan_hides_what_it_makes_nothing_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["plan", "--help"])
    shown = capsys.readouterr().out
    assert "--input_shape" in shown
    assert not any(f"--{name} " in shown for name in ("out", "resume", "tensorboard"))
    path = tmp_path / "a.yaml"
    path.write_text("out: somewhere")  # but takes it, for the sake of recipes
    assert parsing.parse(plan.PlanConfig, "plan", ["--config", str(path)], "", plan.HIDDEN).out == "somewhere"


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
    """Processor time, which other work on the machine hardly changes."""
    seconds = []
    for _ in range(3):
        before = os.times()
        subprocess.run([sys.executable, "-m", "nmlearn", *words], capture_output=True, check=True)
        after = os.times()
        seconds.append(after.children_user + after.children_system - before.children_user - before.children_system)
    assert min(seconds) < 0.5


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


@pytest.mark.parametrize("package", cli.CLI_PACKAGES)
def test_a_missing_package_is_named(package: str) -> None:
    code = (
        f"import sys; sys.modules[{package!r}] = None; from nmlearn.cli import main; sys.exit(main(['train', '--x']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "pip install 'nmlearn[cli]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_files_that_cannot_be_written_are_explained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    out = str(tmp_path / "file" / "run")
    assert cli.main(["train", "--out", out, "--data.options.train_limit", "128"]) == 2
    output, shown = capsys.readouterr()
    assert output == ""  # no empty line of a bar that never moved
    for part in ("Not a directory", "or choose another place"):
        assert part in " ".join(shown.split())
    monkeypatch.setenv("RANK", "1")
    assert cli.main(["trian"]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("process 1: nmlearn: given trian") and shown.count("\n") == 1


@pytest.mark.skipif(sys.platform == "win32", reason="no signals of this kind on Windows")
def test_sigterm_is_an_interruption(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(cli, "_run", lambda words: signal.raise_signal(signal.SIGTERM))
    assert cli.main(["compare"]) == 130
    assert "goes on" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == before
