"""``nmlearn export``, on a toy run and on a run with real images."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import toy
from nmlearn import cli
from nmlearn.cli import console
from nmlearn.lab.train import MethodConfig, ModelConfig, recipe, train

for package in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(package, reason=f"needs the optional package {package}")


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    toy.register()
    monkeypatch.setattr(console.out, "width", 140)
    monkeypatch.setattr(console.err, "width", 300)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    toy.register()
    folder = tmp_path_factory.mktemp("run")
    train(toy.config(folder, epochs=1, ema=0.9))
    return folder


def test_a_run_is_exported_beside_its_model(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["export", str(run)]) == 0
    shown = capsys.readouterr().out
    rows = {line.split()[0]: line.split() for line in shown.splitlines()}
    assert rows["3.weight"] == ["3.weight", "2:4", "same", "name", "Conv", "16×16×3×3", "[out,", "in,", "...]", "yes"]
    assert "same outputs in ONNX Runtime" in shown
    file = run / "model" / "model.onnx"
    assert f"{file}: opset 20, {file.stat().st_size:,} bytes" in shown


def outputs(file: Path, batch: int) -> torch.Tensor:
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    shape = session.get_inputs()[0].shape
    assert shape[1:] == list(toy.Toy.input_shape)
    inputs = torch.randn(batch, *toy.Toy.input_shape, generator=torch.Generator().manual_seed(0))
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: inputs.numpy()})[0])


def test_any_batch_or_a_fixed_one(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["export", str(run), "--out", str(tmp_path / "any.onnx")]) == 0
    average = str(run / "model" / "average.safetensors")
    words = ["--batch", "3", "--out", str(tmp_path / "three.onnx"), "--opset", "18", "--format", "onnx"]
    assert cli.main(["export", average, *words]) == 0
    assert "opset 18" in capsys.readouterr().out
    assert outputs(tmp_path / "any.onnx", 1).shape == (1, 4)
    mine, theirs = outputs(tmp_path / "any.onnx", 3), outputs(tmp_path / "three.onnx", 3)
    assert not torch.allclose(mine, theirs)  # the average's are other weights
    with pytest.raises(Exception, match="Expected: 3"):
        outputs(tmp_path / "three.onnx", 2)


def test_without_data(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = toy.config(run, epochs=1)
    gone = tmp_path / "gone"
    (gone / "model").mkdir(parents=True)
    text = recipe.dumps(config).replace("name: toy\n", "name: image-folder\n")
    (gone / "config.yaml").write_text(text)
    save_file(load_file(run / "model" / "model.safetensors"), gone / "model" / "model.safetensors")
    assert cli.main(["export", str(gone)]) == 2
    assert "or give --input_shape and --classes" in " ".join(capsys.readouterr().err.split())
    assert cli.main(["export", str(gone), "--input_shape", "[16,4,4]", "--classes", "4"]) == 0
    assert "3.weight  2:4" in capsys.readouterr().out  # from the zeros: this file says nothing on patterns
    for words in (["--classes", "4"], ["--input_shape", "[16,4,4]"], ["--input_shape", "[16", "--classes", "4"]):
        assert cli.main(["export", str(gone), *words]) == 2
        assert "give both" in capsys.readouterr().err


def test_a_text_model_without_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from nmlearn.lab import models
    from nmlearn.lab.train.folder import save_model

    options = {"vocabulary": 32, "dim": 16, "depth": 1, "heads": 2}
    model = models.build("text-transformer", classes=4, input_shape=(6,), kind="text", **options)
    save_model(tmp_path / "model" / "model.safetensors", model, {})
    config = toy.config(tmp_path, model=ModelConfig("text-transformer", options=options))
    (tmp_path / "config.yaml").write_text(recipe.dumps(config))
    assert cli.main(["export", str(tmp_path), "--input_shape", "[6]", "--classes", "4"]) == 0
    shown = capsys.readouterr().out
    assert "No weight has an N:M pattern." in shown and "same outputs" in shown


def test_a_broken_run_is_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from nmlearn.lab.train.folder import save_model

    config = toy.config(tmp_path, MethodConfig("lbc", "1:4"))
    model = toy.toy_conv(4, toy.Toy.input_shape)
    save_model(tmp_path / "model" / "model.safetensors", model, {"3.weight": "1:4"})
    (tmp_path / "config.yaml").write_text(recipe.dumps(config))
    assert cli.main(["export", str(tmp_path)]) == 2
    shown = capsys.readouterr().err
    assert "ViolationError" in shown and "3.weight" in shown
    assert not (tmp_path / "model" / "model.onnx").exists()


def test_what_is_no_run(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (tmp_path, tmp_path / "nothing.safetensors", run / "config.yaml"):
        assert cli.main(["export", str(path)]) == 2
        assert "neither the folder of a finished run" in capsys.readouterr().err
    for words in (["--batch", "0"], ["--format", "coreml"]):
        with pytest.raises(SystemExit):
            cli.main(["export", str(run), *words])
    capsys.readouterr()


@pytest.mark.parametrize("text", ["{", "[1]", '{"3.weight": "4:2"}', '{"3.weight": null}'])
def test_patterns_that_cannot_be_read_are_an_error(
    text: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "config.yaml").write_text(recipe.dumps(toy.config(run, epochs=1)))
    tensors = load_file(run / "model" / "model.safetensors")
    save_file(tensors, tmp_path / "model" / "model.safetensors", metadata={"nmlearn.patterns": text})
    assert cli.main(["export", str(tmp_path)]) == 2
    shown = capsys.readouterr().err
    assert "FormatError" in shown and "nmlearn.patterns" in shown
