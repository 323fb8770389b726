"""Every instruction set of the kernels in one process: copies of the library, each with its own NMLEARN_ISA."""

import functools
import os
import shutil
from ctypes import CDLL
from pathlib import Path

import pytest

from nmlearn.native import library as native
from nmlearn.packed.kernels import calls

ISAS = ("avx512", "avx2", "portable")


@functools.cache
def forced(isa: str, folder: Path) -> CDLL | None:
    """The library with this instruction set; None where it is not built, or the machine has no such instructions."""
    built = next((path for path in native._places() if path.is_file()), None)
    if built is None:
        return None
    copy = shutil.copy(built, folder / f"{isa}.so")  # a library reads the variable once, so each set needs its own
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(os.environ, "NMLEARN_ISA", isa)
        patch.setitem(os.environ, "NMLEARN_KERNELS", str(copy))
        return native.library.__wrapped__()


@pytest.fixture(params=ISAS)
def isa(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> str:
    """Runs a test once with the kernels of every instruction set."""
    lib = forced(request.param, tmp_path_factory.getbasetemp())
    if lib is None:
        pytest.skip(f"no {request.param} kernels: the library is not built (make kernels) or the processor has none")
    monkeypatch.setattr(native, "library", lambda: lib)
    monkeypatch.setattr(calls, "_CALLS", {})  # a call that is known keeps its library
    return str(request.param)


@pytest.fixture
def no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine without the library."""
    monkeypatch.setattr(native, "library", lambda: None)
    monkeypatch.setattr(calls, "_CALLS", {})
