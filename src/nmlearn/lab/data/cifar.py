"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009) from their python archives, packed or unpacked.

The archives hold pickles, which can run arbitrary code when loaded. They are therefore read with an unpickler that
accepts bytes, text, numbers, lists, dicts and numpy arrays, and refuses everything else.
"""

from __future__ import annotations

import io
import pickle
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nmlearn.errors import DataError
from nmlearn.lab.data.arrays import ArrayImages, Labelled
from nmlearn.lab.data.options import ImageOptions, parse
from nmlearn.lab.data.task import Task

DEFAULT_FOLDER = Path("data")


@dataclass(frozen=True)
class Archive:
    """The contents of one of the two archives."""

    name: str
    file: str
    folder: str
    train: tuple[str, ...]
    test: str
    labels: bytes  # the key of the labels in a batch
    classes: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @property
    def fix(self) -> str:
        """How to get it."""
        return (
            f"download https://www.cs.toronto.edu/~kriz/{self.file}, put it (or the unpacked folder {self.folder}) "
            "into a folder and set data.path to that folder"
        )


CIFAR10 = Archive(
    name="cifar10",
    file="cifar-10-python.tar.gz",
    folder="cifar-10-batches-py",
    train=tuple(f"data_batch_{number}" for number in range(1, 6)),
    test="test_batch",
    labels=b"labels",
    classes=10,
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
)
CIFAR100 = Archive(
    name="cifar100",
    file="cifar-100-python.tar.gz",
    folder="cifar-100-python",
    train=("train",),
    test="test",
    labels=b"fine_labels",
    classes=100,
    mean=(0.5071, 0.4865, 0.4409),
    std=(0.2673, 0.2564, 0.2762),
)


def cifar10(path: Path | None = None, **options: object) -> Task:
    """CIFAR-10, float32 [3, 32, 32]. `path`: the archive, its unpacked folder, or the parent folder (None: data/)."""
    return _load(CIFAR10, path or DEFAULT_FOLDER, options)


def cifar100(path: Path | None = None, **options: object) -> Task:
    """CIFAR-100 with its fine labels, float32 [3, 32, 32]. `path` as for `cifar10`."""
    return _load(CIFAR100, path or DEFAULT_FOLDER, options)


def _load(archive: Archive, path: Path, given: dict[str, object]) -> Task:
    options = parse(ImageOptions, given)
    place = _find(archive, path)
    batches = _read_tar(archive, place) if place.is_file() else _read_folder(archive, place)
    train = _joined([_labelled(archive, name, batches[name]) for name in archive.train])
    test = _labelled(archive, archive.test, batches[archive.test])
    return ArrayImages(
        archive.name,
        train,
        test,
        classes=archive.classes,
        mean=archive.mean,
        std=archive.std,
        source=str(place),
        options=options,
    )


def _find(archive: Archive, path: Path) -> Path:
    """The archive file or the unpacked folder for `path`."""
    if path.is_file() or (path / archive.test).is_file():
        return path
    for place in (path / archive.folder, path / archive.file):
        if place.exists():
            return place
    wrong = f"neither {archive.file} nor a folder {archive.folder} found"
    raise DataError(where="data.path", given=path, wrong=wrong, fix=archive.fix)


def _read_folder(archive: Archive, folder: Path) -> dict[str, bytes]:
    names = (*archive.train, archive.test)
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise DataError(where="data.path", given=folder, wrong=f"no file {missing[0]} found", fix=archive.fix)
    return {name: (folder / name).read_bytes() for name in names}


def _read_tar(archive: Archive, file: Path) -> dict[str, bytes]:
    """The batches' bytes, read from the archive without unpacking it to disk."""
    wanted = {f"{archive.folder}/{name}": name for name in (*archive.train, archive.test)}
    found = {}
    try:
        with tarfile.open(file) as tar:
            for member in tar:
                stream = tar.extractfile(member) if member.name in wanted else None
                if stream is not None:
                    found[wanted[member.name]] = stream.read()
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        wrong = f"is not a complete tar archive ({error})"
        raise DataError(where=archive.file, given=file, wrong=wrong, fix=archive.fix) from error
    missing = set(wanted.values()) - set(found)
    if missing:
        raise DataError(where=archive.file, given=file, wrong=f"no {min(missing)} inside", fix=archive.fix)
    return found


def _labelled(archive: Archive, name: str, raw: bytes) -> Labelled:
    """One batch: a dict of `data`, uint8 [n, 3072] (red, green, blue planes), and a list of n labels."""
    batch = read_pickle(raw, name)
    content: dict[bytes, Any] = batch if isinstance(batch, dict) else {}
    data, labels = content.get(b"data", []), content.get(archive.labels, [])
    if not _fits(data, labels, archive.classes):
        wrong = f"does not hold uint8 images of 3072 bytes with labels below {archive.classes}"
        raise DataError(where=name, given=archive.file, wrong=wrong, fix=archive.fix)
    return Labelled(torch.from_numpy(data.copy()).view(-1, 3, 32, 32), torch.tensor(labels))


def _fits(data: Any, labels: Any, classes: int) -> bool:
    if not (isinstance(data, np.ndarray) and isinstance(labels, list) and data.dtype == np.uint8):
        return False
    return data.shape == (len(labels), 3072) and all(isinstance(x, int) and 0 <= x < classes for x in labels)


def _joined(parts: list[Labelled]) -> Labelled:
    return Labelled(torch.cat([part.images for part in parts]), torch.cat([part.labels for part in parts]))


def read_pickle(raw: bytes, name: str) -> Any:
    """The plain data in a pickle, with Python 2 strings as bytes.

    Raises:
        DataError: it is damaged, or names anything but plain data; nothing in it has been run.
    """
    try:
        return PlainUnpickler(io.BytesIO(raw), encoding="bytes").load()
    except Exception as error:  # unpickling damaged bytes can raise almost anything
        fix = "download the archive again from its home page"
        raise DataError(where=name, given=f"{len(raw)} bytes", wrong=f"not plain data ({error})", fix=fix) from error


class PlainUnpickler(pickle.Unpickler):
    """Builds only plain data and numpy arrays."""

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        """The few callables that pickled arrays need, under their old and new names."""
        if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return _empty_array
        # `ndarray` is only an argument of `_reconstruct`, which ignores it: called, it could make arrays of any size.
        allowed: dict[tuple[str, str], Callable[..., Any]] = {
            ("numpy", "ndarray"): _empty_array,
            ("numpy", "dtype"): _number_type,
            ("_codecs", "encode"): _latin1,
        }
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is not data")
        return allowed[module, name]


def _empty_array(*_ignored: object) -> np.ndarray:
    """numpy's `_reconstruct` as pickles use it: the values follow through __setstate__."""
    return np.empty((0,), np.uint8)


def _number_type(code: str | bytes, *_flags: object) -> np.dtype[Any]:
    kind = np.dtype(code.decode() if isinstance(code, bytes) else code)
    if kind.hasobject:
        raise pickle.UnpicklingError("it holds an array of objects, which is not data")
    return kind


def _latin1(text: str, encoding: str | bytes = "latin1") -> bytes:
    """The way Python 3 writes bytes into old pickles; only that encoding, so that no codec is looked up."""
    if encoding not in ("latin1", b"latin1"):
        raise pickle.UnpicklingError(f"it asks for the encoding {encoding!r}")
    return text.encode("latin1")
