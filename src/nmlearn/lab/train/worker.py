"""One run of a comparison in its own process: ``python -m nmlearn.lab.train.worker RECIPE.yaml``.

Errors go to standard error, whose last line the comparison reports. The process ends when its standard input does: the
comparison holds the other end of that pipe, and the system closes it whenever and however the comparison ends.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

from nmlearn.errors import NMLearnError
from nmlearn.lab.train import recipe
from nmlearn.lab.train.config import TrainConfig


def main(path: Path, ends_with_input: bool = False) -> int:
    """Train from a recipe file; returns the exit code, 2 for an error raised by nmlearn.

    Args:
        path: the recipe.
        ends_with_input: end this process, as SIGTERM does, when its standard input has ended.
    """
    if ends_with_input:
        threading.Thread(target=_end_with_input, daemon=True).start()
    # Torch takes seconds to import; the parent may have ended by then.
    from nmlearn.lab.train.loop import train

    try:
        train(recipe.build(TrainConfig, recipe.load(path)))
    except NMLearnError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


def _end_with_input() -> None:
    while os.read(0, 1):  # not by sys.stdin, whose lock a thread would hold while Python ends
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), ends_with_input=True))
