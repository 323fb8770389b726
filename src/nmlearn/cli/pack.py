"""``nmlearn pack``: write a model file that leaves out the zeros."""

from __future__ import annotations

import argparse
from pathlib import Path

from nmlearn.cli import console
from nmlearn.cli.conversion import locate, written
from nmlearn.cli.escapes import Parser
from nmlearn.errors import ConfigError

DESCRIPTION = """Pack a model file: a weight whose zeros form an N:M pattern along its inputs is stored as N values and
an index per group, all other tensors unchanged. `nmlearn unpack` restores every bit except the sign of zeros."""


def run(arguments: list[str]) -> int:
    """Pack the file."""
    given = parser().parse_args(arguments)
    from nmlearn.files import model_file

    source, patterns = locate(given.source), dict(_rule(text) for text in given.pattern)
    written(source, given.target, lambda: model_file.convert(source, given.target, patterns=patterns))
    stored = model_file.stored(given.target)
    packed = sum(one.encoding is not None for one in stored.values())
    console.out.print(f"packed {packed} of {len(stored)} tensors; nmlearn inspect lists them")
    return 0


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = Parser(prog="nmlearn pack", description=DESCRIPTION)
    parser.add_argument("source", metavar="IN", type=Path, help="a safetensors file or a run folder")
    parser.add_argument("target", metavar="OUT", type=Path, help="the packed file")
    parser.add_argument(
        "--pattern",
        metavar="GLOB=N:M",
        action="append",
        default=[],
        help="pack matching weights with this pattern, not their tightest; GLOB=dense: do not pack; last match wins",
    )
    return parser


def _rule(text: str) -> tuple[str, str | None]:
    glob, equals, pattern = text.rpartition("=")
    if not equals:
        raise ConfigError(where="--pattern", given=text, wrong="not GLOB=N:M", fix="write for instance 'fc*=2:4'")
    return glob, None if pattern == "dense" else pattern
