"""WordNet 3.0 noun definitions: which of 24 kinds of noun (act, animal, artifact ...) does a definition describe?

The file data.noun has one noun sense per line: offset, number of its lexicographer file (the class), words, pointers
and, after " | ", the definition; examples follow a semicolon. Format: wndb(5WN). The classes noun.Tops (3) and
noun.motive (16) are too small and omitted. Debian's package wordnet-base has the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nmlearn.errors import DataError
from nmlearn.lab.data.labelled import LabelledOptions, LabelledTexts
from nmlearn.lab.data.options import parse
from nmlearn.lab.data.task import Task

DEBIAN_FILE = Path("/usr/share/wordnet/data.noun")
GET_IT = "install Debian's package wordnet-base, or set data.path to WordNet 3.0's file data.noun (or its folder)"
NOUN_CLASSES = tuple(number for number in range(4, 29) if number != 16)


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
    settings = parse(LabelledOptions, options)
    definitions = read_definitions(file.read_text(encoding="utf-8", errors="replace").splitlines())
    if len({label for _, label in definitions}) < 2:
        raise DataError(where="data.path", given=file, wrong="has no noun definitions of two classes", fix=GET_IT)
    return LabelledTexts("wordnet", definitions, len(NOUN_CLASSES), str(file), settings)


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
