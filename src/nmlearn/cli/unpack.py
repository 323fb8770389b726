"""``nmlearn unpack``: convert a packed file to an ordinary safetensors file."""

from __future__ import annotations

import argparse
from pathlib import Path

from nmlearn.cli.conversion import locate, written
from nmlearn.cli.escapes import Parser

DESCRIPTION = """Convert a packed model file to an ordinary safetensors file that any reader understands. The zeros are
in place, and every bit is as before packing except the sign of zeros."""


def run(arguments: list[str]) -> int:
    """Unpack the file."""
    given = parser().parse_args(arguments)
    from nmlearn.files import model_file

    source = locate(given.source)
    written(source, given.target, lambda: model_file.convert(source, given.target, packed=False))
    return 0


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = Parser(prog="nmlearn unpack", description=DESCRIPTION)
    parser.add_argument("source", metavar="IN", type=Path, help="a packed file")
    parser.add_argument("target", metavar="OUT", type=Path, help="the dense file")
    return parser
