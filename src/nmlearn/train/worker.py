"""One run of a comparison in a process of its own: ``python -m nmlearn.train.worker RECIPE.yaml``.

What goes wrong goes to standard error, where the comparison reads its last line.
"""

from __future__ import annotations

import sys
from pathlib import Path

from nmlearn.errors import NMLearnError
from nmlearn.train import recipe
from nmlearn.train.config import TrainConfig
from nmlearn.train.loop import train


def main(path: Path) -> int:
    """Train by a recipe file; the exit code, 2 for an error that nmlearn explains."""
    try:
        train(recipe.build(TrainConfig, recipe.load(path)))
    except NMLearnError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
