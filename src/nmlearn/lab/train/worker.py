"""One run of a comparison in a process of its own: ``python -m nmlearn.lab.train.worker RECIPE.yaml``.

What goes wrong goes to standard error, where the comparison reads its last line. The process ends with its parent, also
when that is killed.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

from nmlearn.errors import NMLearnError
from nmlearn.lab.train import recipe
from nmlearn.lab.train.config import TrainConfig


def main(path: Path) -> int:
    """Train by a recipe file; the exit code, 2 for an error that nmlearn explains."""
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    # Torch takes seconds to import, and by then the parent may be gone already.
    from nmlearn.lab.train.loop import train

    try:
        train(recipe.build(TrainConfig, recipe.load(path)))
    except NMLearnError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


def _end_with(parent: int) -> None:
    """Wait until the process has another parent, which is when the first one has ended; then end too."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
