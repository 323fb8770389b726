"""Write src/nmlearn/lab/data/files/fashion-mnist-subset.xz from the full Fashion-MNIST.

    python experiments/make_fashion_subset.py [FOLDER WITH THE FOUR IDX FILES]

Takes the first 1,000 training and 200 test images of each class, in their original order, and prints the SHA-256 of
the unpacked bytes that nmlearn/lab/data/fashion.py checks. Debian's package dataset-fashion-mnist has the files.
"""

from __future__ import annotations

import hashlib
import lzma
import sys
from pathlib import Path

import numpy as np

from nmlearn.lab.data import fashion

OUTPUT = Path(__file__).parents[1] / "src" / "nmlearn" / "lab" / "data" / "files" / fashion.SUBSET_FILE
# Pixels are single bytes without alignment: no position or literal context bits, 3 % smaller.
FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 0, "lp": 0, "pb": 0}]


def first_of_each_class(labels: np.ndarray, count: int) -> np.ndarray:
    """Sorted positions of the first `count` examples of each class."""
    return np.sort(np.concatenate([np.flatnonzero(labels == label)[:count] for label in np.unique(labels)]))


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else fashion.DEBIAN_FOLDER
    raw = b""
    for part, size in zip(("train", "t10k"), fashion.SUBSET_SIZES, strict=True):
        images = fashion.read_idx(folder / f"{part}-images-idx3-ubyte.gz")
        labels = fashion.read_idx(folder / f"{part}-labels-idx1-ubyte.gz")
        keep = first_of_each_class(labels, size // 10)
        raw += images[keep].tobytes() + labels[keep].tobytes()
    OUTPUT.write_bytes(lzma.compress(raw, filters=FILTERS))
    print(f"{OUTPUT}: {OUTPUT.stat().st_size} bytes, sha256 of the unpacked bytes {hashlib.sha256(raw).hexdigest()}")


if __name__ == "__main__":
    main()
