"""``nmlearn report``: write the HTML report of a run or a comparison."""

from __future__ import annotations

import argparse
from pathlib import Path

from nmlearn.cli import console
from nmlearn.cli.escapes import Parser


def run(arguments: list[str]) -> int:
    """Write the page and print its path."""
    given = parser().parse_args(arguments)
    import nmlearn.lab.report

    console.out.print(str(nmlearn.lab.report.write(given.path, given.out)), soft_wrap=True)
    return 0


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = Parser(
        prog="nmlearn report",
        description="Write report.html for a run folder, a comparison folder or a results/*.json file: one page that "
        "needs no network. It also works while the run is in progress.",
    )
    parser.add_argument("path", type=Path, help="run folder, comparison folder or results file")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the page (default: report.html in the folder)")
    return parser
