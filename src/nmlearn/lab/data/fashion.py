"""Fashion-MNIST (Xiao et al. 2017): 28 x 28 grey-scale images of ten kinds of clothing. MIT licence, Zalando SE.

"fashion-mnist" is the subset inside this package (1,000 training and 200 test images of each class);
"fashion-mnist-full" has all 60,000 + 10,000, from Debian's dataset-fashion-mnist or a folder with the four IDX files.
"""

from __future__ import annotations

import gzip
import hashlib
import lzma
import zlib
from importlib import resources
from pathlib import Path

import numpy as np
import torch

from nmlearn.errors import ConfigError, DataError
from nmlearn.lab.data.arrays import ArrayImages, Labelled
from nmlearn.lab.data.options import ImageOptions, parse
from nmlearn.lab.data.task import Task

MEAN, STD = (0.2860,), (0.3530,)
SUBSET_FILE = "fashion-mnist-subset.xz"  # uint8: train images, train labels, test images, test labels
SUBSET_SIZES = (10_000, 2_000)
SUBSET_SHA256 = "d5b91c929ef64cdf3fac6a13820932f698037ef77030a9584f3d6499a1ccee00"
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
# md5 of the unpacked files: Debian recompresses them, so the sums of the archives differ between distributors.
UNPACKED_MD5 = {
    "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
    "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
    "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
    "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
}
GET_IT = (
    f"install Debian's package dataset-fashion-mnist, or put the four IDX files ({', '.join(UNPACKED_MD5)}; each may "
    "end in .gz) into a folder and set data.path to it"
)


def fashion_mnist(path: Path | None = None, **options: object) -> Task:
    """The included subset: 10,000 + 2,000 images, float32 [1, 28, 28], 10 classes.

    Raises:
        ConfigError: a path is given, or an option is wrong.
        DataError: the file in the package is damaged.
    """
    if path is not None:
        raise ConfigError(
            where="data.path",
            given=path,
            wrong="fashion-mnist is the subset inside the package and takes no path",
            fix="omit data.path, or use data.name: fashion-mnist-full",
        )
    packed = resources.files("nmlearn.lab.data").joinpath("files", SUBSET_FILE)
    raw = lzma.decompress(packed.read_bytes())
    if hashlib.sha256(raw).hexdigest() != SUBSET_SHA256:
        raise DataError(where=SUBSET_FILE, given=packed, wrong="its checksum is wrong", fix="reinstall nmlearn")
    parts, start = [], 0
    for size in SUBSET_SIZES:
        pixels, end = start + size * 28 * 28, start + size * 28 * 28 + size
        parts.append(labelled(np.frombuffer(raw[start:pixels], np.uint8), np.frombuffer(raw[pixels:end], np.uint8)))
        start = end
    return _task("fashion-mnist", parts[0], parts[1], "inside the nmlearn package (10k + 2k subset)", options)


def fashion_mnist_full(path: Path | None = None, **options: object) -> Task:
    """All 60,000 + 10,000 images, float32 [1, 28, 28], 10 classes, from `path` or Debian's folder.

    Raises:
        ConfigError: an option is wrong.
        DataError: a file is missing or is not from Fashion-MNIST.
    """
    folder = path or DEBIAN_FOLDER
    train, test = (
        labelled(_checked(folder, f"{part}-images-idx3-ubyte"), _checked(folder, f"{part}-labels-idx1-ubyte"))
        for part in ("train", "t10k")
    )
    return _task("fashion-mnist-full", train, test, str(folder), options)


def labelled(pixels: np.ndarray, labels: np.ndarray) -> Labelled:
    """uint8 pixels of any shape and uint8 labels [n] -> images uint8 [n, 1, 28, 28], labels int64 [n]."""
    images = torch.from_numpy(pixels.copy()).view(-1, 1, 28, 28)
    return Labelled(images, torch.from_numpy(labels.astype(np.int64)))


def read_idx(path: Path) -> np.ndarray:
    """The uint8 array in one IDX file, plain or gzip.

    Raises:
        DataError: it is damaged, or not an IDX file of bytes.
    """
    return parse_idx(unpacked(path), path)


def unpacked(path: Path) -> bytes:
    """The file's bytes, decompressed when its name ends in .gz."""
    if path.suffix != ".gz":
        return path.read_bytes()
    try:
        return gzip.decompress(path.read_bytes())
    except (EOFError, OSError, zlib.error) as error:
        raise DataError(where=path.name, given=path, wrong=f"cannot be decompressed ({error})", fix=GET_IT) from error


def parse_idx(raw: bytes, path: Path) -> np.ndarray:
    """IDX: two zero bytes, type 8 (uint8), number of dimensions, each size as big-endian uint32, then the values."""
    dimensions = raw[3] if len(raw) > 3 and raw[:3] == b"\0\0\x08" else 0
    start = 4 + 4 * dimensions
    shape = [int(size) for size in np.frombuffer(raw[4:start], ">u4")] if len(raw) >= start else [-1]
    if not dimensions or len(raw) - start != np.prod(shape):
        raise DataError(where=path.name, given=path, wrong="is not a complete IDX file of bytes", fix=GET_IT)
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape)


def _checked(folder: Path, name: str) -> np.ndarray:
    path = next((p for p in (folder / f"{name}.gz", folder / name) if p.is_file()), None)
    if path is None:
        raise DataError(where="data.path", given=folder, wrong=f"no file {name}.gz or {name} found", fix=GET_IT)
    raw = unpacked(path)
    if hashlib.md5(raw, usedforsecurity=False).hexdigest() != UNPACKED_MD5[name]:
        raise DataError(where=name, given=path, wrong="its unpacked bytes are not Fashion-MNIST's", fix=GET_IT)
    return parse_idx(raw, path)


def _task(name: str, train: Labelled, test: Labelled, source: str, given: dict[str, object]) -> Task:
    options = parse(ImageOptions, given)
    return ArrayImages(name, train, test, classes=10, mean=MEAN, std=STD, source=source, options=options)
