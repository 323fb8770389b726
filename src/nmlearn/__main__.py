"""``python -m nmlearn``: the command line."""

import sys

from nmlearn.cli import main

if __name__ == "__main__":
    sys.exit(main())
