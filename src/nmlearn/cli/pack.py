"""``nmlearn pack``: a model file, smaller by its zeros."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from nmlearn.cli import console
from nmlearn.cli.model_file import locate, written
from nmlearn.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from nmlearn.files.formats import Layout
    from nmlearn.maths.pattern import Pattern

DESCRIPTION = """Pack a model file: of every weight whose zeros show a pattern N:M along its inputs, N values of every
group and an index are stored, the rest as it is. `nmlearn unpack` restores every bit."""


def run(words: list[str]) -> int:
    """Pack as the words say."""
    given = parser().parse_args(words)
    from nmlearn.files import model_file as checkpoint

    source, patterns = locate(given.source), dict(_rule(text) for text in given.pattern)
    written(source, given.target, lambda: checkpoint.convert(source, given.target, patterns=patterns))
    stored = checkpoint.stored(given.target)
    packed = sum(one.layout is not None for one in stored.values())
    console.out.print(f"packed {packed} of {len(stored)} tensors; nmlearn inspect shows which")
    tensors = checkpoint.load(given.target)
    for name, pattern in ((name, _hidden(tensors[name], one.layout)) for name, one in stored.items()):
        if pattern is not None:
            text = f"{name}: negative zeros count as values; were they positive, it would be packed as {pattern}"
            console.out.print(text, soft_wrap=True, markup=False)
    return 0


def parser() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = argparse.ArgumentParser(prog="nmlearn pack", description=DESCRIPTION)
    parser.add_argument("source", metavar="IN", type=Path, help="a safetensors file or a run folder")
    parser.add_argument("target", metavar="OUT", type=Path, help="the packed file")
    parser.add_argument(
        "--pattern",
        metavar="GLOB=N:M",
        action="append",
        default=[],
        help="pack what matches with this pattern instead of its tightest, or GLOB=dense not at all; the last one wins",
    )
    return parser


def _hidden(weight: Tensor, layout: Layout | None) -> Pattern | None:
    """The sparser pattern that a weight would show were its negative zeros, which ``weight * mask`` makes, positive."""
    from nmlearn.maths.masks import nonzero_bits
    from nmlearn.maths.zeros import input_axis, tightest

    if weight.ndim < 2 or not weight.is_floating_point():
        return None
    kept_w = weight != 0
    if not bool((nonzero_bits(weight) & ~kept_w).any()):
        return None
    pattern = tightest(kept_w, layout.grouping.axis if layout else input_axis(kept_w))
    density = layout.grouping.pattern.density if layout else 1.0
    return pattern if pattern is not None and pattern.density < density else None


def _rule(text: str) -> tuple[str, str | None]:
    glob, equals, pattern = text.rpartition("=")
    if not equals:
        raise ConfigError(where="--pattern", given=text, wrong="it is not GLOB=N:M", fix="write for instance 'fc*=2:4'")
    return glob, None if pattern == "dense" else pattern
