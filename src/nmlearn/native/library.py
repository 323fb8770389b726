"""The compiled CPU kernels, behind ctypes."""

from __future__ import annotations

import ctypes
import functools
import os
from pathlib import Path
from typing import ClassVar

ABI = 5
KERNELS = {"rows": 0, "tokens": 1, "bytes": 2}
SIZES = (
    "batch", "height", "width", "out_height", "out_width", "channels", "rows", "groups", "kernel_h", "kernel_w",
    "stride_h", "stride_w", "pad_h", "pad_w", "dilation_h", "dilation_w", "n", "m", "tile",
)  # fmt: skip
_CODES = ("activation", "dtype", "images")


class Shape(ctypes.Structure):
    """csrc/job.h, Shape."""

    _fields_: ClassVar = [(name, ctypes.c_int64) for name in SIZES] + [(name, ctypes.c_int32) for name in _CODES]


@functools.cache
def library() -> ctypes.CDLL | None:
    """The kernel library; None if it is missing or unusable, see :func:`problem`."""
    return _load()[0]


def problem() -> str:
    """Why there are no compiled kernels; empty if there are."""
    return _load()[1]


def _load() -> tuple[ctypes.CDLL | None, str]:
    path = next((p for p in _places() if p.is_file()), None)
    if path is None:
        return None, "the kernel library was not built"
    if _truncated(path):
        return None, f"{path} is incomplete: it was truncated when it was built or copied"
    import torch  # noqa: F401  (its OpenMP is the one that the kernels use)

    try:
        lib = ctypes.CDLL(str(path))
        abi = lib.nm_abi()
    except OSError as error:
        return None, f"the library was built for another system: {error}"
    except AttributeError:
        return None, f"{path} is another library, not nmlearn's"
    if abi != ABI:
        return None, f"{path} belongs to another version of nmlearn"
    lib.nm_isa.restype = ctypes.c_char_p
    if not lib.nm_isa():
        return None, f"this processor has no kernels for NMLEARN_ISA={os.environ.get('NMLEARN_ISA')}"
    lib.nm_run.argtypes = [ctypes.c_int, ctypes.POINTER(Shape), *[ctypes.c_void_p] * 8]
    return lib, ""


def _truncated(path: Path) -> bool:
    """Whether a 64-bit ELF file ends before its section table, the last thing in it: loading it could raise SIGBUS."""
    with path.open("rb") as file:
        head = file.read(64)
    table, size, count = (int.from_bytes(head[i:j], "little") for i, j in ((40, 48), (58, 60), (60, 62)))
    return head.startswith(b"\x7fELF") and path.stat().st_size < table + size * count


def _places() -> list[Path]:
    given = os.environ.get("NMLEARN_KERNELS")  # another build of the library, for instance with sanitizers
    import nmlearn.native

    return [Path(given)] if given else [Path(folder) / "_kernels.so" for folder in nmlearn.native.__path__]


def isa() -> str:
    """The instruction set in use, "avx512", "avx2" or "portable"; "" without the library.

    The environment variable NMLEARN_ISA, read once, forces one of them.
    """
    lib = library()
    name: str = lib.nm_isa().decode() if lib else ""
    return name


def fingerprint() -> str:
    """A word that changes with the library, for caches of what is known about it."""
    path = next((p for p in _places() if p.is_file()), None)
    return "" if path is None else f"{path.stat().st_size:x}-{path.stat().st_mtime_ns:x}"
