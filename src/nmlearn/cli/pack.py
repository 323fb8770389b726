"""``nmlearn pack``: a model file, smaller by its zeros."""

from __future__ import annotations

import argparse
from pathlib import Path

from nmlearn.cli import console
from nmlearn.cli.model_file import locate, written
from nmlearn.errors import ConfigError

DESCRIPTION = """Pack a model file: of every weight whose zeros show a pattern N:M along its inputs, N values of every
group and an index are stored, the rest as it is. `nmlearn unpack` restores every bit but the sign of zeros."""


def run(words: list[str]) -> int:
    """Pack as the words say."""
    given = parser().parse_args(words)
    from nmlearn.files import model_file as checkpoint

    source, patterns = locate(given.source), dict(_rule(text) for text in given.pattern)
    written(source, given.target, lambda: checkpoint.convert(source, given.target, patterns=patterns))
    stored = checkpoint.stored(given.target)
    packed = sum(one.encoding is not None for one in stored.values())
    console.out.print(f"packed {packed} of {len(stored)} tensors; nmlearn inspect shows which")
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


def _rule(text: str) -> tuple[str, str | None]:
    glob, equals, pattern = text.rpartition("=")
    if not equals:
        raise ConfigError(where="--pattern", given=text, wrong="it is not GLOB=N:M", fix="write for instance 'fc*=2:4'")
    return glob, None if pattern == "dense" else pattern
