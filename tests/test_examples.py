"""The examples run as they are."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).resolve().parents[1] / "examples").glob("*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=[path.stem for path in EXAMPLES])
def test_example(path):
    done = subprocess.run([sys.executable, "-W", "error", path, "1"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "finished, 6.25% of the hidden layer left" in done.stdout
