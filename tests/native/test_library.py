"""Wrong files in place of the kernel library: explained, and never half loaded."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nmlearn.native import library as native

SCRIPT = "from nmlearn.native import library; print(library.library(), library.problem())"


def loaded(path: Path) -> str:
    """What a fresh process reports about a library, which could crash it."""
    variables = os.environ | {"NMLEARN_KERNELS": str(path)}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(not native.isa(), reason="the CPU kernels are not built")
@pytest.mark.parametrize("left", [0.05, 0.5, 0.99])
def test_a_library_cut_short(left: float, tmp_path: Path) -> None:
    whole = next(path for path in native._places() if path.is_file()).read_bytes()
    path = tmp_path / "short.so"
    path.write_bytes(whole[: int(left * len(whole))])
    assert "None" in loaded(path)
    assert "is incomplete" in loaded(path)


def test_another_library() -> None:
    assert "is another library, not nmlearn's" in loaded(Path(torch._C.__file__))


@pytest.mark.parametrize("content", [b"", b"\x7fELF", b"text" * 99])
def test_no_library(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "none.so"
    path.write_bytes(content)
    assert "built for another system" in loaded(path)
