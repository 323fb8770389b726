"""CIFAR's files in their real layout, made on the spot."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np

from nmlearn.lab.data.cifar import Archive


def batch(archive: Archive, count: int, seed: int, protocol: int = 2) -> bytes:
    random = np.random.default_rng(seed)
    content = {
        b"batch_label": b"made by a test",
        archive.labels: [number % archive.classes for number in range(count)],
        b"data": random.integers(0, 256, (count, 3072), dtype=np.uint8),
        b"filenames": [b"x.png"] * count,
    }
    return pickle.dumps(content, protocol=protocol)


def unpacked(archive: Archive, root: Path, count: int = 20) -> Path:
    folder = root / archive.folder
    folder.mkdir(parents=True)
    for number, name in enumerate((*archive.train, archive.test)):
        (folder / name).write_bytes(batch(archive, count, number))
    return folder
