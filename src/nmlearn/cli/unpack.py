"""``nmlearn unpack``: an ordinary safetensors file out of a packed one."""

from __future__ import annotations

import argparse
from pathlib import Path

from nmlearn.cli.model_file import locate, written

DESCRIPTION = """Unpack a model file: an ordinary safetensors file with the zeros in place, equal bit for bit to what
was packed but for the sign of zeros, that any reader understands."""


def run(words: list[str]) -> int:
    """Unpack as the words say."""
    given = parser().parse_args(words)
    from nmlearn.files import model_file as checkpoint

    source = locate(given.source)
    written(source, given.target, lambda: checkpoint.convert(source, given.target, packed=False))
    return 0


def parser() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = argparse.ArgumentParser(prog="nmlearn unpack", description=DESCRIPTION)
    parser.add_argument("source", metavar="IN", type=Path, help="a packed file")
    parser.add_argument("target", metavar="OUT", type=Path, help="the dense file")
    return parser
