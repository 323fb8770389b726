"""``nmlearn export``: the model of a run for other runtimes."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nmlearn.cli import console
from nmlearn.errors import ConfigError, DataError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from nmlearn.integrations.onnx import OnnxExport
    from nmlearn.lab.train.config import TrainConfig

DESCRIPTION = """Write the model of a run, dense with its zeros, as an ONNX file.

The file is run in ONNX Runtime when that is installed, and its outputs are compared with the model's; every sparse
weight is looked up in the file. The table shows where it lies there, and whether TensorRT's 2:4 kernels may take it."""
MODEL = Path("model", "model.safetensors")
PATTERNS = "nmlearn.patterns"  # in a file's metadata: JSON, weight -> pattern
EXAMPLES = 2  # a batch of one is where exporters take a free dimension for a fixed one


def run(words: list[str]) -> int:
    """Export as the words say."""
    given = parser().parse_args(words)
    folder, file = _found(given.path)
    from nmlearn.integrations.onnx import export_onnx
    from nmlearn.lab.train import recipe, setting
    from nmlearn.lab.train.config import TrainConfig

    config = recipe.build(TrainConfig, recipe.load(folder / "config.yaml"))
    model, inputs = _of_data(config, given) if given.input_shape is given.classes is None else _of_shape(config, given)
    setting.load_weights(model, file)
    export = export_onnx(
        model,
        inputs,
        given.out or file.with_suffix(".onnx"),
        patterns=_patterns(file),
        opset=given.opset,
        dynamic_batch=given.batch is None,
    )
    _show(export)
    return 0


def parser() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = argparse.ArgumentParser(prog="nmlearn export", description=DESCRIPTION)
    parser.add_argument("path", type=Path, help="a run folder, or a model in one: RUN/model/average.safetensors")
    parser.add_argument("--format", choices=["onnx"], default="onnx", help="what to write (default: onnx)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the file to write (default: beside the model)")
    parser.add_argument("--batch", type=_positive, metavar="B", help="fix the batch size (default: any)")
    parser.add_argument("--opset", type=int, default=20, help="the version of ONNX's operators (default: 20)")
    parser.add_argument("--input_shape", metavar="[C,H,W]", help="of one input; with --classes, no data is read")
    parser.add_argument("--classes", type=_positive, help="number of outputs")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return number


def _found(path: Path) -> tuple[Path, Path]:
    """The run folder, and the model's file in it."""
    folder, file = (path, path / MODEL) if path.is_dir() else (path.parent.parent, path)
    missing = [str(each) for each in (folder / "config.yaml", file) if not each.exists()]
    if missing:
        raise ConfigError(
            where="export",
            given=path,
            wrong=f"not the folder of a finished run, nor a model in one: no {missing[0]}",
            fix="give what nmlearn train wrote; a model of your own goes through nmlearn.integrations.onnx.export_onnx",
        )
    return folder, file


def _patterns(file: Path) -> dict[str, str] | None:
    """What the file says of its weights; None where it says nothing, and their zeros have to."""
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        return json.loads((opened.metadata() or {}).get(PATTERNS, "{}")) or None


def _of_data(config: TrainConfig, given: argparse.Namespace) -> tuple[nn.Module, Tensor]:
    """The run's model, not loaded yet, and examples of its data."""
    import torch

    from nmlearn.lab.train.setting import build_model, load_task

    size = given.batch or EXAMPLES
    try:
        task = load_task(config.data)
        inputs = next(iter(task.eval_batches(size)))[0]
    except DataError as error:
        fix = f"{error.fix}; or give --input_shape and --classes to export without data"
        raise DataError(where=error.where, given=error.given, wrong=error.wrong, fix=fix) from error
    model = build_model(dataclasses.replace(config.model, weights=None), task)
    return model, inputs[torch.arange(size) % len(inputs)]


def _of_shape(config: TrainConfig, given: argparse.Namespace) -> tuple[nn.Module, Tensor]:
    """The run's model, not loaded yet, and made-up inputs: noise, or tokens that every vocabulary has."""
    import torch

    from nmlearn.lab import models

    shape = _shape(given)
    kind = "image" if len(shape) == 3 else "language" if config.model.name == "gpt" else "text"
    model = models.build(config.model.name, classes=given.classes, input_shape=shape, kind=kind, **config.model.options)
    size = (given.batch or EXAMPLES, *shape)
    return model, torch.randn(size) if kind == "image" else torch.randint(min(given.classes, 2), size)


def _shape(given: argparse.Namespace) -> tuple[int, ...]:
    from nmlearn.lab.train import recipe

    try:
        shape = recipe.loads(given.input_shape or "null")
    except ConfigError:
        shape = None
    if given.classes is None or not isinstance(shape, list) or not all(type(size) is int for size in shape):
        raise ConfigError(
            where="export",
            given=f"--input_shape {given.input_shape}, --classes {given.classes}",
            wrong="a model needs the shape of its inputs, a list of numbers, and the number of its outputs",
            fix="give both, for instance --input_shape '[3,224,224]' --classes 1000, or none: then the data says",
        )
    return tuple(shape)


def _show(export: OnnxExport) -> None:
    if export.weights:
        console.out.print(_table(export))
    else:
        console.out.print("No weight has a pattern N:M.")
    for name in export.unused:
        console.out.print(f"{name} is not in the file: no output depends on it.", soft_wrap=True)
    found = export.difference
    if found is None:
        console.out.print(console.say("yellow", "not compared", ": pip install onnxruntime to run the file"))
    else:
        ratio = f"{found.relative:.1e} of the largest output, {found.absolute:.1e} absolute"
        console.out.print(console.say("green", "same outputs", f" in ONNX Runtime: the largest difference is {ratio}"))
    size = sum(file.stat().st_size for file in (export.path, Path(f"{export.path}.data")) if file.exists())
    console.out.print(f"{export.path}: opset {export.opset}, {size:,} bytes", soft_wrap=True)


def _table(export: OnnxExport) -> Any:
    table = console.table("weight", "pattern", "in the file", "operator", "shape", "layout", "TensorRT 2:4")
    for weight in export.weights:
        table.add_row(
            weight.name,
            str(weight.pattern),
            weight.initializer if weight.initializer != weight.name else "same name",
            weight.operator,
            "×".join(map(str, weight.shape)),
            weight.layout,
            console.say("green", "yes") if weight.two_of_four else console.say("yellow", "no"),
        )
    return table
