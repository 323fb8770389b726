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
from places import ROOT


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
        (["--precision", "fp16"], "must be one of fp32, bf16"),
        (["--method.rules", "3"], "must be a mapping"),
        (["--train.data", "toy.yaml"], "unknown option"),
        (["--data", "toy", "--data.toy.x", "3"], "unknown option"),
        (["--lr", "0.1"], "did you mean --optim.lr?"),
        (["--optim.lr", ".inf"], "--optim.lr: given inf: must be a finite number"),
        (["--optim.lr", "-.inf"], "--optim.lr: given --optim.lr -.inf: expected one argument"),
        (["--compile", "yes"], "must be true or false"),
        (["--epochs"], "--epochs: given --epochs: expected one argument"),
        (["--data.options.x", "[a"], "--data.options.x: given [a: not YAML"),
        (["--data.options", "3"], "--data.options: given 3: must be a mapping of keys"),
        (["--data.path", "\udcff"], "surrogates not allowed"),
    ],
)
def test_wrong_words(words: list[str], said: str) -> None:
    with pytest.raises(NMLearnError) as caught:
        parse(*words)
    assert said in str(caught.value)


def test_lists_are_asked_for_plainly() -> None:
    for option, said in (("patterns", r"'\[2:4, 1:4\]'"), ("seeds", r"each entry a whole number.*'\[1, 2, 3\]'")):
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


def test_text_stays_text(tmp_path: Path) -> None:
    config = parse(
        "--out", "123", "--data.path", "a: [b", "--model.name", "1e3", "--resume", "null", "--model.weights", "~"
    )
    assert (config.out, config.data.path, config.model.name) == ("123", "a: [b", "1e3")
    assert (config.resume, config.model.weights) == ("null", None)


def test_later_words_lie_over_earlier_ones(tmp_path: Path) -> None:
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text("epochs: 3\ndata: {name: mine, options: {train_limit: 5}}\noptim: {milestones: [1]}")
    second.write_text("epochs: 4\ndata: {options: {eval_limit: 7}}\noptim: {schedule: step}")
    config = parse("--epochs", "9", "--config", str(first), f"--config={second}", "--data.options.augment", "none")
    assert (config.epochs, config.data.name) == (4, "mine")
    assert config.data.options == {"eval_limit": 7, "augment": "none"}  # a mapping is one setting
    assert config.optim.milestones == (1.0,)  # not complete in its own file
    config = parse("--config", str(first), "--config", str(second), "--data.options", "{}")
    assert config.data.options == {}


def test_methods_that_are_left_out_take_their_options_with_them(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("methods: [dense, oneshot, lbc]\noptions: {oneshot: {at: 0.5}, lbc: {end: 0.4}}")
    words = ["--config", str(path), "--methods", "[dense, lbc]"]
    config = parsing.parse(CompareConfig, "compare", words, "")
    assert (config.methods, config.options) == (("dense", "lbc"), {"lbc": {"end": 0.4}})
    path.write_text("options: {oneshot: {at: 0.5}, lbc: {end: 0.4}}")  # of the default methods
    assert parsing.parse(CompareConfig, "compare", words, "").options == {"lbc": {"end": 0.4}}
    with pytest.raises(ConfigError, match="not one of the methods compared"):
        parsing.parse(CompareConfig, "compare", [*words, "--options.lcb.end", "0.3"], "")


@pytest.mark.parametrize("recipe_path", sorted((ROOT / "recipes").glob("*compare*.yaml")), ids=lambda path: path.stem)
def test_shipped_comparisons_can_be_narrowed(recipe_path: Path) -> None:
    words = ["--config", str(recipe_path), "--methods", "[dense]"]
    assert parsing.parse(CompareConfig, "compare", words, "").options == {}


def test_rules_have_dots() -> None:
    assert parse("--method.rules.backbone.fpn.*", "null").method.rules == {"backbone.fpn.*": None}


def test_errors_say_where_the_value_was_given(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("epochs: 0\nmethod: {rules: {fc: 4:2}}")
    for words, where in (
        ([], f"{path}: method.rules['fc']"),
        (["--method.rules.fc", "2:4"], f"{path}: epochs"),
        (["--method.rules", "{}", "--epochs", "-1"], "--epochs"),
    ):
        with pytest.raises(NMLearnError) as caught:
            parse("--config", str(path), *words)
        assert caught.value.where == where
    path.write_text("method: lbc")
    with pytest.raises(ConfigError, match=r"a\.yaml: method: given 'lbc': must be a mapping of keys"):
        parse("--config", str(path), "--pattern", "2:4")


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


def test_help_says_what_belongs_there(capsys: pytest.CaptureFixture[str]) -> None:
    for command, texts in {
        "train": ("Passes over the training data. (a whole number; default: 8)", "--optim.name NAME, --optim NAME"),
        "compare": (
            '(a list, each entry text; default: ["2:4"])',
            "--train.data.name NAME, --data NAME",
            "that all runs share",
        ),
        "plan": (
            "Passes over the training data.",
            "(one of fp32, bf16; default: fp32)",
            "(text, or null; default: null)",
        ),
    }.items():
        with pytest.raises(SystemExit):
            cli.main([command, "--help"])
        shown = " ".join(capsys.readouterr().out.split())
        assert not [text for text in texts if text not in shown]


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
    assert "resumes from the last checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize("package", cli.CLI_PACKAGES)
def test_a_missing_package_is_named(package: str) -> None:
    words = ["train", "--seed", "x"]
    code = f"import sys; sys.modules[{package!r}] = None; from nmlearn.cli import main; sys.exit(main({words}))"
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
    assert "resumes from the last checkpoint" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_recipe_whose_folder_has_a_nul(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(f'out: "{tmp_path}/a\\0b"\ndata: {{options: {{train_limit: 128}}}}')
    assert cli.main(["train", "--config", str(path)]) == 2
    shown = capsys.readouterr().err
    assert "NUL" in shown and "choose another place" in " ".join(shown.split())
