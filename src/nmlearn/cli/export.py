"""``nmlearn export``: export the model of a run for other runtimes."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nmlearn.cli import console
from nmlearn.cli.conversion import MODEL, patterns
from nmlearn.cli.escapes import Parser
from nmlearn.errors import ConfigError, DataError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from nmlearn.integrations.onnx import OnnxExport
    from nmlearn.lab.train.config import TrainConfig

DESCRIPTION = """Write the model of a run, dense with its zeros, as an ONNX file.

If ONNX Runtime is installed, the file is run in it and the outputs are compared with the model's. Every sparse weight
is looked up in the file: the table shows where it is stored, and whether TensorRT's 2:4 kernels can use it."""
EXAMPLES = 2  # exporters treat a free dimension as fixed when the batch size is one


def run(arguments: list[str]) -> int:
    """Run the export."""
    given = parser().parse_args(arguments)
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
        patterns=patterns(file) or None,  # where none are recorded, the zeros decide
        opset=given.opset,
        dynamic_batch=given.batch is None,
    )
    _show(export)
    return 0


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = Parser(prog="nmlearn export", description=DESCRIPTION)
    parser.add_argument("path", type=Path, help="a run folder, or a model in one: RUN/model/average.safetensors")
    parser.add_argument("--format", choices=["onnx"], default="onnx", help="what to write (default: onnx)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the file to write (default: next to the model)")
    parser.add_argument("--batch", type=_positive, metavar="B", help="fix the batch size (default: any)")
    parser.add_argument("--opset", type=int, default=20, help="ONNX operator set version (default: 20)")
    parser.add_argument("--input_shape", metavar="[C,H,W]", help="shape of one input; with --classes, no data is read")
    parser.add_argument("--classes", type=_positive, help="number of outputs")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return number


def _found(path: Path) -> tuple[Path, Path]:
    """The run folder, and the model's file in it."""
    folder, file = (path, path / MODEL) if path.is_dir() else (path.parent.parent, path)
    missing = [str(each) for each in (folder / "config.yaml", file) if not each.exists()]
    if missing:
        raise ConfigError(
            where="export",
            given=path,
            wrong=f"neither the folder of a finished run nor a model in one: no {missing[0]}",
            fix="give a run of nmlearn train; export your own model with nmlearn.integrations.onnx.export_onnx",
        )
    return folder, file


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
    """The run's model, not loaded yet, and synthetic inputs: noise, or tokens that every vocabulary has."""
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
            wrong="both the input shape (a list of numbers) and the number of outputs are needed",
            fix="give both, e.g. --input_shape '[3,224,224]' --classes 1000, or neither, to take them from the data",
        )
    return tuple(shape)


def _show(export: OnnxExport) -> None:
    if export.weights:
        console.out.print(_table(export))
    else:
        console.out.print("No weight has an N:M pattern.")
    for name in export.unused:
        console.out.print(f"{name} is not in the file: no output depends on it.", soft_wrap=True)
    found = export.difference
    if found is None:
        console.out.print(console.say("yellow", "not compared", ": run pip install onnxruntime to check the file"))
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
