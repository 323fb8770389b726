"""Labelled texts in memory: their tokens, and their split into training and evaluation."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from nmlearn.errors import ConfigError
from nmlearn.lab.data.options import Limits, require
from nmlearn.lab.data.task import Batch, Draw, Task

PADDING, UNKNOWN = 0, 1

Encode = Callable[[str], list[int]]


@dataclass(frozen=True)
class LabelledOptions(Limits):
    """Options of "wordnet" and "csv".

    Attributes:
        length: tokens per example; longer texts are truncated, shorter ones padded with token 0.
        vocabulary: number of token ids of the built-in word tokenizer: padding, unknown, and the most frequent words.
        tokenizer: folder (or tokenizer.json) of a Hugging Face tokenizer to use instead, e.g. for pretrained models.
    """

    length: int = 32
    vocabulary: int = 8192
    tokenizer: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.length >= 1, "length", self.length, "not positive", "use for instance 32")
        require(self.vocabulary >= 3, "vocabulary", self.vocabulary, "no room for words", "use for instance 8192")


class LabelledTexts(Task):
    """Token ids int64 [b, T] and classes int64 [b].

    Args:
        texts: with their classes, numbered from 0.
    """

    kind = "text"

    def __init__(
        self, name: str, texts: list[tuple[str, int]], classes: int, source: str, options: LabelledOptions
    ) -> None:
        self.name, self.classes, self.source, self.input_shape = name, classes, source, (options.length,)
        train, evaluation = split(texts)
        encode, self.vocabulary = _tokenizer(train, options)
        self._train = _encoded(train[: options.train_limit], encode, options.length)
        self._eval = _encoded(evaluation[: options.eval_limit], encode, options.length)
        self.train_size, self.eval_size = len(self._train[1]), len(self._eval[1])

    def read_train(self, draws: Sequence[Draw], *, seed: int, epoch: int) -> Iterator[Batch]:
        tokens, labels = self._train
        for draw in draws:
            yield tokens[draw.indices], labels[draw.indices]

    def read_eval(self, parts: Sequence[Tensor]) -> Iterator[Batch]:
        tokens, labels = self._eval
        for part in parts:
            yield tokens[part], labels[part]


def split(texts: Sequence[tuple[str, int]]) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """Nine tenths for training and one for evaluation, by the hash of the text: equal texts are never split.

    Each part is also ordered by that hash, because a file may be sorted by class, and limits keep the first examples.
    """
    keyed = sorted((hashlib.sha256(text.encode()).digest(), text, label) for text, label in texts)
    train = [(text, label) for digest, text, label in keyed if digest[-1] % 10]
    return train, [(text, label) for digest, text, label in keyed if not digest[-1] % 10]


def words(text: str) -> list[str]:
    """Lower-case words and numbers, and every other symbol separately."""
    return re.findall(r"[a-z0-9]+|[^\sa-z0-9]", text.lower())


def _tokenizer(train: Sequence[tuple[str, int]], options: LabelledOptions) -> tuple[Encode, int]:
    """A function from text to token ids, and the number of token ids."""
    if options.tokenizer is not None:
        return _foreign_tokenizer(options.tokenizer)
    counts = Counter(word for text, _ in train for word in words(text))
    ranked = sorted(counts, key=lambda word: (-counts[word], word))  # ties by spelling: the same ids on every machine
    ids = {word: number for number, word in enumerate(ranked[: options.vocabulary - 2], start=2)}
    return lambda text: [ids.get(word, UNKNOWN) for word in words(text)], options.vocabulary


def _foreign_tokenizer(path: str) -> tuple[Encode, int]:
    file = Path(path).expanduser()
    file = file / "tokenizer.json" if file.is_dir() else file
    try:
        import tokenizers

        tokenizer = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the package's own errors are plain Exceptions
        fix = "install the package tokenizers and give a folder with a tokenizer.json, padding with id 0"
        raise ConfigError(
            where="data.options.tokenizer", given=path, wrong=f"cannot be read ({error})", fix=fix
        ) from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return lambda text: tokenizer.encode(text).ids, tokenizer.get_vocab_size()


def _encoded(examples: Sequence[tuple[str, int]], encode: Encode, length: int) -> tuple[Tensor, Tensor]:
    """Token ids int64 [n, length] and labels int64 [n]."""
    tokens = torch.full((len(examples), length), PADDING)
    for row, (text, _) in enumerate(examples):
        ids = encode(text)[:length]
        tokens[row, : len(ids)] = torch.tensor(ids, dtype=torch.int64)
    return tokens, torch.tensor([label for _, label in examples], dtype=torch.int64)
