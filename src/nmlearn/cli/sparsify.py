"""``nmlearn sparsify``: from a pretrained model to a sparse one, in one command."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING

from nmlearn.cli import console, parsing
from nmlearn.errors import ConfigError
from nmlearn.lab.train.config import SparsifyConfig

if TYPE_CHECKING:
    from nmlearn.lab.train.pretrained import Found

DESCRIPTION = """Make a pretrained model sparse on your data: nmlearn sparsify MODEL DATA --pattern 2:4

MODEL is a folder of transformers, or a name such as timm:NAME. DATA is a CSV file with a column of texts and one of
labels, a folder of images (train/CLASS/, val/CLASS/), or a text. It prunes with compensation, fine-tunes what is left
with the model as it was for a teacher, saves the packed model, and measures how much faster it is here."""

_IMAGES = "image-folder"


def run(arguments: list[str]) -> int:
    """Sparsify, save and tell."""
    config = parsing.parse(SparsifyConfig, "sparsify", named(arguments), DESCRIPTION)
    # Only after the options are checked: this takes a second or two.
    from nmlearn.lab.train.pretrained import sparsified

    with console.out.status("calibrating, pruning and fine-tuning"):
        found = sparsified(config)
    _show(found, config)
    return 0


def named(arguments: list[str]) -> list[str]:
    """MODEL and DATA, where they are given without a name, as the options that they stand for."""
    places = list(itertools.takewhile(lambda argument: not argument.startswith("-"), arguments[:2]))
    rest = arguments[len(places) :]
    if not places:
        return rest
    model, data = places[0], places[1] if len(places) > 1 else None
    folder = (Path(model).expanduser() / "config.json").is_file()
    named = ["--model.name", f"transformers:{model}" if folder else model]
    if not folder and ":" not in model and (Path(model).exists() or "/" in model):
        fix = (
            "give a folder that transformers wrote, or timm:NAME, torchvision:NAME with --model.options.pretrained true"
        )
        raise ConfigError(where="MODEL", given=model, wrong="there is no config.json in it", fix=fix)
    if data is not None:
        named += ["--data.name", _kind(Path(data).expanduser()), "--data.path", data]
        if folder and data.endswith(".csv"):
            named += ["--data.options.tokenizer", model]
    return [*named, *rest]


def _kind(data: Path) -> str:
    if data.is_dir():
        return _IMAGES if (data / "train").is_dir() else "text"
    if data.suffix.lower() == ".csv":
        return "csv"
    if data.suffix.lower() == ".txt":
        return "text"
    fix = "give a .csv file, a .txt file, or a folder of images with train/ and val/"
    raise ConfigError(where="DATA", given=data, wrong="it is none of the kinds that are known by their names", fix=fix)


def _show(found: Found, config: SparsifyConfig) -> None:
    table = console.table("", "")
    table.show_header = False
    metric = "accuracy" if found.after["accuracy"] is not None else "loss"
    say = console.percent if metric == "accuracy" else lambda value: console.number(value, 4)
    table.add_row(f"{metric}, as it came", f"{say(found.before[metric])} of {found.examples:,} held-out examples")
    if found.dense is not None:
        table.add_row(f"{metric}, dense, fine-tuned", say(found.dense[metric]))
    table.add_row(f"{metric}, sparse", say(found.after[metric]))
    summary = found.done.summary
    table.add_row("sparse weights", f"{summary.weights}, density {console.percent(summary.density)}, all verified")
    dense, packed = found.files
    table.add_row("file", f"{dense:,} bytes dense → {packed:,} packed ({console.percent(packed / dense, 1)})")
    if found.acceleration is not None:
        before, after = found.acceleration.before_ms, found.acceleration.after_ms
        kernels = f"{found.acceleration.kernels}, {found.acceleration.threads} threads"
        table.add_row("one example", f"{before:.2f} ms dense → {after:.2f} ms ({before / after:.2f} x; {kernels})")
    for part, seconds in found.done.seconds.items():
        table.add_row(f"{part} took", console.duration(seconds))
    table.add_row("model", str(Path(config.out)))
    console.out.print(table)
    console.out.print()
    console.out.print(_next(config), soft_wrap=True)


def _next(config: SparsifyConfig) -> str:
    if config.model.name.startswith("transformers:"):
        return (
            "next: import nmlearn.integrations.transformers, then from_pretrained reads the folder; "
            "nm.accelerate(model, example) makes it fast"
        )
    return "next: nm.load(PATH, model) reads the file; nm.accelerate(model, example) makes it fast"
