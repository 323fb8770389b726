"""One run of a comparison in its own process: ``python -m nmlearn.lab.train.worker RECIPE.yaml``.

Errors go to standard error, whose last line the comparison reports. The process ends with its parent, even when that is
killed.
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
    """Train from a recipe file; returns the exit code, 2 for an error raised by nmlearn."""
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    # Torch takes seconds to import; the parent may have ended by then.
    from nmlearn.lab.train.loop import train

    try:
        train(recipe.build(TrainConfig, recipe.load(path)))
    except NMLearnError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


def _end_with(parent: int) -> None:
    """Exit once the process has another parent, because the first one has ended."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
