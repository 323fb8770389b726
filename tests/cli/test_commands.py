"""The commands from end to end, on toys and on a few images."""

from __future__ import annotations

import functools
import importlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import nmlearn
import toy
from nmlearn import cli
from nmlearn.cli import console
from nmlearn.lab import train
from nmlearn.lab.train import CompareConfig, recipe


@pytest.fixture(autouse=True)
def _toys(monkeypatch: pytest.MonkeyPatch) -> None:
    toy.register()
    monkeypatch.setattr(console.out, "width", 120)
    monkeypatch.setattr(console.err, "width", 300)
    monkeypatch.setenv("COLUMNS", "120")


def output(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert cli.main(list(words)) == 0
    return capsys.readouterr().out


def test_train_and_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "toy.yaml"
    path.write_text(recipe.dumps(toy.config(tmp_path / "run", ema=0.9)))
    shown = output(capsys, "train", "--config", str(path))
    for part in (
        "toy-conv on toy, lbc 2:4: 100 training",
        "epoch 3/3",
        "accuracy",
        "density",
        "50.00 %",
        "report.html",
    ):
        assert part in shown
    assert "had already finished" in output(capsys, "train", "--config", str(path))
    page = tmp_path / "run" / "report.html"
    assert page.stat().st_size > 1000
    page.unlink()
    assert str(page) in output(capsys, "report", str(tmp_path / "run"))
    assert page.exists()
    assert cli.main(["report", str(tmp_path / "nothing")]) == 2


def test_other_processes_of_torchrun_are_silent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    path = tmp_path / "toy.yaml"
    path.write_text(recipe.dumps(toy.config(tmp_path / "run", epochs=1)))
    assert output(capsys, "train", "--config", str(path)) == ""
    assert not (tmp_path / "run" / "report.html").exists()


def test_compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Real images, because separate processes do not know the toys.
    train_config = replace(toy.config(tmp_path), out=None, epochs=1, batch_size=32)
    data = train.DataConfig(options={"train_limit": 64, "eval_limit": 50})
    model = train.ModelConfig("resnet8", options={"width": 8})
    config = CompareConfig(
        name="few",
        methods=("dense", "lbc"),
        train=replace(train_config, data=data, model=model),
        out=str(tmp_path / "few"),
        results=str(tmp_path / "results"),
    )
    path = tmp_path / "few.yaml"
    path.write_text(recipe.dumps(config))
    shown = output(capsys, "compare", "--config", str(path))
    for part in ("2 runs, 2 at a time", "finished dense-s0", "finished lbc-2of4-s0", "gap to dense", "report.html"):
        assert part in shown
    page = (tmp_path / "few" / "report.html").read_text()
    for name in ("dense-s0", "lbc-2of4-s0"):
        assert f'href="runs/{name}/report.html"' in page
        assert (tmp_path / "few" / "runs" / name / "report.html").exists()
    results = json.loads((tmp_path / "results" / "few.json").read_text())
    assert len(results["runs"]) == 2
    config = replace(config, name="wrong", options={"lbc": {"ends": 0.4}})
    path.write_text(recipe.dumps(config))
    assert cli.main(["compare", "--config", str(path), "--out", str(tmp_path / "few"), "--train.resume", "none"]) == 2
    shown = capsys.readouterr().err
    assert "did you mean 'end'?" in shown
    assert shown.startswith("╭")  # no empty line of a bar that never moved


def test_plan(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    shown = output(capsys, "plan", "--data.name", "toy", "--model.name", "toy-conv", "--method.pattern", "1:16")
    assert "0.weight" in shown and "first convolution" in shown
    assert "16×16×3×3" in shown and "1:16" in shown and "16, removed" in shown
    assert "1 of 3 weights sparse" in shown
    shown = output(
        capsys, "plan", "--model.name", "resnet20", "--input_shape", "[3,32,32]", "--classes", "7",
        "--method.rules", '{"layer3.*": 4:8, "layer1.*": null}',
    )  # fmt: skip
    assert "7×64" in shown and "4:8" in shown and "rule 'layer1.*'" in shown
    monkeypatch.setattr(console.out, "width", 200)
    for words in (
        ["--data.name", "toy", "--model.name", "toy-swapped"],
        ["--model.name", "toy-swapped", "--input_shape", "[16,4,4]", "--classes", "7"],
        ["--model.name", "text-transformer", "--input_shape", "[16]", "--classes", "7"],
    ):
        assert "as in the paper (seen on the example)" in output(capsys, "plan", *words)
    assert cli.main(["plan", "--classes", "7"]) == 2
    assert cli.main(["plan", "--data.name", "toy", "--method.rules", '{"nothing.*": 2:4}']) == 2


def test_plan_chooses_patterns_for_a_budget(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rules, run = tmp_path / "rules.yaml", str(tmp_path / "run")
    toys = ("--data", "toy", "--model", "toy-mlp", "--optim.lr", "0.01")
    given = ("--patterns", "[2:4, 1:8]", "--method.rules", '{"1": 2:8}', "--examples", "40")
    shown = output(capsys, "plan", *toys, *given, "--parameters", "0.26", "--write", str(rules))
    assert "3.weight  32x32" in shown and "1:8 wherever it fits: " in shown and "change of the model's outputs" in shown
    assert "% of parameters (asked for: 26.0 % of parameters" in shown and "untrained weights" in shown
    assert recipe.load(rules) == {"method": {"rules": {"1": "2:8", "3.weight": "1:8"}}}
    shown = output(capsys, "plan", *toys, "--config", str(rules))
    assert "2:8" in shown and "1:8" in shown and "2 of 3 weights sparse" in shown
    output(capsys, "train", *toys, "--config", str(rules), "--epochs", "1", "--batch_size", "50", "--out", run)
    shown = output(capsys, "inspect", run)
    assert "2:8" in shown and "1:8" in shown


def test_plan_chooses_patterns_without_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(nmlearn.allocate.__kwdefaults__, "cache", tmp_path / "kernels.json")
    shape = ("--input_shape", "[3,32,32]", "--classes", "7")
    shown = output(capsys, "plan", "--model", "resnet8", *shape, "--flops", "0.5")
    assert "% of multiply-adds (asked for: 50.0 % of multiply-adds)" in shown and "share of its squares" in shown
    assert cli.main(["plan", "--model", "resnet8", *shape, "--speedup", "1000"]) == 2
    assert "at best" in capsys.readouterr().err
    text = ("--input_shape", "[16]", "--classes", "64", "--model.options", "{dim: 32, heads: 2}")
    assert "multiply-adds" in output(capsys, "plan", "--model", "gpt", *text, "--flops", "0.6")
    for words, said in (
        (("--flops", "0.5", "--bytes", "0.5"), "flops"),
        (("--write", "rules.yaml"), "rules are chosen for one budget"),
        (("--flops", "0.5", "--criterion", "output"), "it needs the inputs of layers"),
        (("--flops", "0.5", "--examples", "0"), "must be at least 1"),
        (("--flops", "0.5", "--patterns", "[2:4, 5]"), "quote the pattern"),
    ):
        assert cli.main(["plan", "--model", "resnet8", *shape, *words]) == 2
        assert said in " ".join(capsys.readouterr().err.split())


def test_plan_without_data_is_offered(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "--data", "text", "--model", "gpt"]) == 2
    shown = " ".join(capsys.readouterr().err.split())
    assert "data.path is not set" in shown and "--input_shape '[128]' --classes 256 to plan" in shown
    assert cli.main(["plan", "--data", "image-folder"]) == 2
    shown = " ".join(capsys.readouterr().err.split())
    assert "--input_shape '[3,224,224]' --classes 1000" in shown


def test_a_failed_run_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from nmlearn.lab.train import compare as _  # noqa: F401

    module = importlib.import_module("nmlearn.lab.train.compare")
    broken = functools.partial(module.compare, command=lambda path: [sys.executable, "-c", "exit('[red]no luck[/]')"])
    monkeypatch.setattr(module, "compare", broken)
    path = tmp_path / "toy.yaml"
    base = replace(toy.config(tmp_path, epochs=1), out=None)
    config = CompareConfig("toys", base, methods=("lbc",), out=str(tmp_path / "out"), results=str(tmp_path / "results"))
    path.write_text(recipe.dumps(config))
    assert cli.main(["compare", "--config", str(path)]) == 1
    shown = capsys.readouterr().out
    assert "failed lbc-2of4-s0: [red]no luck[/]" in shown
    assert str(tmp_path / "out" / "results.json") in shown
    assert not (tmp_path / "results").exists()


def test_doctor_lists_models_methods_and_options(capsys: pytest.CaptureFixture[str]) -> None:
    from nmlearn.cli import choices, doctor

    models = {name: text for _, name, text in choices.models()}
    assert models["vit"].startswith("patch=null, dim=192")
    assert "timm:..." in models
    assert "end=0.5" in {name: text for _, name, text in choices.methods()}["lbc"]
    long = "https://" + "a-b" * 60
    doctor._print(False, "cifar10", f"download {long} and put it there")
    assert long in capsys.readouterr().out


def test_doctor(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from nmlearn.cli import doctor

    for name, text in (("sick", "raise RuntimeError('no operator nms\\nand more')"), ("sound", "__version__ = '1.2'")):
        (tmp_path / f"{name}_package.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    packages = {f"{name}_package": "something" for name in ("sick", "sound", "absent")}
    monkeypatch.setattr(doctor, "PACKAGES", packages)
    monkeypatch.setattr(doctor, "_data", lambda: iter([(False, "cifar10", "put it there")]))
    lines = [" ".join(line.split()) for line in output(capsys, "doctor").splitlines()]
    assert any(line.startswith("resnet20 width=16") for line in lines)
    assert "no sick_package broken: no operator nms, for something; pip install sick_package" in lines
    assert "yes sound_package 1.2, for something" in lines
    assert "no absent_package not installed, for something; pip install absent_package" in lines
    assert "no cifar10 put it there" in lines


def test_doctor_needs_no_optional_package() -> None:
    missing = ["rich", "pydantic", "ruamel", "ruamel.yaml", "PIL", "tensorboard", "torchvision", "timm", "transformers"]
    code = f"import sys; sys.modules.update(dict.fromkeys({missing})); from nmlearn.cli import main; main(['doctor'])"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    for name, purpose in (("rich", "all other commands"), ("pydantic", "nmlearn train"), ("ruamel.yaml", "nmlearn")):
        assert any(line.startswith(f"no {name} not installed, for {purpose}") for line in lines)
    assert "pip install 'nmlearn[cli]'" in " ".join(done.stdout.split())


def test_doctor_lists_the_kernels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from nmlearn.cli import doctor
    from nmlearn.native import library as native

    found = {name: (state, text) for state, name, text in doctor._kernels()}
    assert found["CPU"][0] is (native.library() is not None)
    assert native.isa() in found["CPU"][1]
    if not torch.cuda.is_available():
        assert [state for state, _ in found.values()][1:] == [False, False, False]
    monkeypatch.setenv("NMLEARN_KERNELS", str(tmp_path / "none.so"))
    (state, _, text), *_ = doctor._kernels()
    assert state is False
    assert "was not built; packed layers use the reference kernel" in text
    assert "apt install g++" in text
    (tmp_path / "text.so").write_text("no library")
    monkeypatch.setenv("NMLEARN_KERNELS", str(tmp_path / "text.so"))
    assert "built for another system" in native.problem()


def test_doctor_lists_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    from nmlearn.cli import doctor
    from nmlearn.lab import data

    kept = {name: data.DATASETS[name] for name in ("fashion-mnist", "cifar10")}
    monkeypatch.setattr(data, "DATASETS", kept)
    found = {name: (state, text) for state, name, text in doctor._data()}
    assert found["fashion-mnist"][0] is True
    assert "10,000 + 2,000" in found["fashion-mnist"][1]
    assert found["cifar10"][0] is False
    assert "cifar-10-python.tar.gz" in found["cifar10"][1]
