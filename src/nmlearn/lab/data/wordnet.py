"""WordNet 3.0 noun definitions: which of 24 kinds of noun (act, animal, artifact ...) does a definition describe?

The file data.noun has one noun sense per line: offset, number of its lexicographer file (the class), words, pointers
and, after " | ", the definition; examples follow a semicolon. Format: wndb(5WN). The classes noun.Tops (3) and
noun.motive (16) are too small and omitted. Debian's package wordnet-base has the file.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from nmlearn.errors import ConfigError, DataError
from nmlearn.lab.data.options import Limits, parse, require
from nmlearn.lab.data.task import Batch, Draw, Task

DEBIAN_FILE = Path("/usr/share/wordnet/data.noun")
GET_IT = "install Debian's package wordnet-base, or set data.path to WordNet 3.0's file data.noun (or its folder)"
NOUN_CLASSES = tuple(number for number in range(4, 29) if number != 16)
PADDING, UNKNOWN = 0, 1

Encode = Callable[[str], list[int]]


@dataclass(frozen=True)
class WordNetOptions(Limits):
    """Options of "wordnet".

    Attributes:
        length: tokens per example; longer definitions are truncated, shorter ones padded with token 0.
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


class WordNet(Task):
    """Token ids int64 [b, T] and classes int64 [b]."""

    name, kind, classes = "wordnet", "text", len(NOUN_CLASSES)

    def __init__(self, definitions: list[tuple[str, int]], source: str, options: WordNetOptions) -> None:
        self.source, self.input_shape = source, (options.length,)
        train, evaluation = split(definitions)
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


def wordnet_nouns(path: Path | None = None, **options: object) -> Task:
    """WordNet's noun definitions as a text classification task with 24 classes.

    Raises:
        ConfigError: an option is wrong, or the package for the given tokenizer is missing.
        DataError: the file is missing or has no definitions.
    """
    file = path or DEBIAN_FILE
    file = file / "data.noun" if file.is_dir() else file
    if not file.is_file():
        raise DataError(where="data.path", given=file, wrong="no such file", fix=GET_IT)
    settings = parse(WordNetOptions, options)
    definitions = read_definitions(file.read_text(encoding="utf-8", errors="replace").splitlines())
    if len({label for _, label in definitions}) < 2:
        raise DataError(where="data.path", given=file, wrong="has no noun definitions of two classes", fix=GET_IT)
    return WordNet(definitions, str(file), settings)


def read_definitions(lines: Sequence[str]) -> list[tuple[str, int]]:
    """(definition before the first semicolon, class number from 0) of each noun; the indented licence is skipped."""
    found = []
    for line in lines:
        fields, bar, text = line.partition(" | ")
        if not bar or line.startswith(" "):
            continue
        number = int(fields.split()[1])
        if number in NOUN_CLASSES:
            found.append((text.split(";")[0].strip(), NOUN_CLASSES.index(number)))
    return found


def split(definitions: Sequence[tuple[str, int]]) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """Nine tenths for training and one for evaluation, by the hash of the text: equal texts are never split.

    Each part is also ordered by that hash, because the file is sorted by class and limits keep the first examples.
    """
    keyed = sorted((hashlib.sha256(text.encode()).digest(), text, label) for text, label in definitions)
    train = [(text, label) for digest, text, label in keyed if digest[-1] % 10]
    return train, [(text, label) for digest, text, label in keyed if not digest[-1] % 10]


def words(text: str) -> list[str]:
    """Lower-case words and numbers, and every other symbol separately."""
    return re.findall(r"[a-z0-9]+|[^\sa-z0-9]", text.lower())


def _tokenizer(train: Sequence[tuple[str, int]], options: WordNetOptions) -> tuple[Encode, int]:
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
