"""Where things are in the repository."""

from pathlib import Path

SUPPORT = Path(__file__).resolve().parent
ROOT = SUPPORT.parents[1]
LOOPS = SUPPORT / "loops"
