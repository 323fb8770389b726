"""``nmlearn report``: the HTML page of a run or a comparison."""

from __future__ import annotations

import argparse
from pathlib import Path

from nmlearn.cli import console


def run(words: list[str]) -> int:
    """Write the page again and say where it is."""
    path = parser().parse_args(words).path
    import nmlearn.lab.report

    console.out.print(nmlearn.lab.report.write(path), soft_wrap=True)
    return 0


def parser() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = argparse.ArgumentParser(
        prog="nmlearn report",
        description="Write report.html for a run folder, a comparison's folder or a results/*.json file: one page that "
        "needs no network, also while the run is going on.",
    )
    parser.add_argument("path", type=Path, help="run folder, comparison folder or results file")
    return parser
