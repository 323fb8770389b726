"""Byte-level language modelling on any plain text: a vocabulary of 256, and no tokenizer to choose or ship.

The metric is bits per byte, loss / ln 2, which is comparable across texts and models.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from nmlearn.errors import DataError
from nmlearn.lab.data.options import Limits, parse, require
from nmlearn.lab.data.task import Batch, Draw, Task, first, mixed_seed

EVAL_SHARE = 0.1
GET_IT = "set data.path to a .txt file or a folder of .txt files, with more than a few lines of text"


@dataclass(frozen=True)
class TextOptions(Limits):
    """Options of "text".

    Attributes:
        length: context of one example in bytes. Limits count examples of this length.
    """

    length: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.length >= 1, "length", self.length, "not positive", "use for instance 128")


class PlainText(Task):
    """Next-byte prediction: inputs int64 [b, T] and targets int64 [b, T], the inputs one byte later.

    Training windows do not overlap within an epoch; the first one's offset changes with the epoch. Evaluation
    windows are fixed; a remainder shorter than a window is dropped.
    """

    name, kind, classes, vocabulary = "text", "language", 256, 256
    bytes_per_token = 1.0

    def __init__(self, train: bytes, evaluation: bytes, source: str, options: TextOptions) -> None:
        self.source, self.input_shape = source, (options.length,)
        self._train, self._eval = _bytes(train), _bytes(evaluation)
        # One more byte for the last target, and one window less so that every offset fits.
        self.train_size = first((len(train) - options.length) // options.length, options.train_limit)
        self.eval_size = first((len(evaluation) - 1) // options.length, options.eval_limit)
        if self.train_size < 1 or self.eval_size < 1:
            wrong = f"too short for one training and one evaluation window of {options.length} bytes"
            raise DataError(where="data.path", given=source, wrong=wrong, fix=GET_IT)

    def read_train(self, draws: Sequence[Draw], *, seed: int, epoch: int) -> Iterator[Batch]:
        start = mixed_seed(seed, epoch, 0) % self.input_shape[0]
        for draw in draws:
            yield self._windows(self._train, draw.indices, start)

    def read_eval(self, parts: Sequence[Tensor]) -> Iterator[Batch]:
        for part in parts:
            yield self._windows(self._eval, part, 0)

    def _windows(self, text: Tensor, numbers: Tensor, start: int) -> Batch:
        length = self.input_shape[0]
        places = start + numbers[:, None] * length + torch.arange(length + 1)
        window = text[places].long()
        return window[:, :-1].contiguous(), window[:, 1:].contiguous()


def plain_text(path: Path | None = None, **options: object) -> Task:
    """The text in the file `path`, or in all .txt files under the folder `path`.

    A folder is split by file: about a tenth of the bytes, chosen by the hash of the file names, is for evaluation. A
    single file gives its last tenth. Files are ordered by that hash, so that limits, which keep the first windows,
    sample the whole folder.

    Raises:
        ConfigError: an option is wrong.
        DataError: there is no text, or too little.
    """
    settings = parse(TextOptions, options)
    if path is None or not path.exists():
        wrong = "data.path is not set" if path is None else "no such file or folder"
        raise DataError(where="data.path", given=path or "nothing", wrong=wrong, fix=GET_IT)
    train, evaluation = _split_file(path) if path.is_file() else _split_folder(path)
    return PlainText(train, evaluation, str(path), settings)


def _split_file(file: Path) -> tuple[bytes, bytes]:
    text = file.read_bytes()
    end = len(text) - int(len(text) * EVAL_SHARE)
    return text[:end], text[end:]


def _split_folder(folder: Path) -> tuple[bytes, bytes]:
    sizes = {file.relative_to(folder).as_posix(): file.stat().st_size for file in folder.rglob("*.txt")}
    if not sizes:
        raise DataError(where="data.path", given=folder, wrong="no .txt files found", fix=GET_IT)
    if len(sizes) == 1:
        return _split_file(folder / next(iter(sizes)))
    chosen = eval_files(sizes)
    return _joined(folder, by_hash(set(sizes) - chosen)), _joined(folder, by_hash(chosen))


def by_hash(names: Iterable[str]) -> list[str]:
    """File names, ordered by their SHA-256."""
    return sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())


def eval_files(sizes: dict[str, int]) -> set[str]:
    """Names of the evaluation files: in hash order, every file that still fits into a tenth of the bytes.

    If none fits, it is the smallest file that is not empty.
    """
    room = int(sum(sizes.values()) * EVAL_SHARE)
    chosen = set()
    for name in by_hash(sizes):
        if 0 < sizes[name] <= room:
            chosen.add(name)
            room -= sizes[name]
    return chosen or {min(sizes, key=lambda name: (sizes[name] == 0, sizes[name], name))}


def _joined(folder: Path, names: Sequence[str]) -> bytes:
    return b"\n\n".join((folder / name).read_bytes() for name in names)


def _bytes(text: bytes) -> Tensor:
    return torch.frombuffer(bytearray(text), dtype=torch.uint8) if text else torch.empty(0, dtype=torch.uint8)
