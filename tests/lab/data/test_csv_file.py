"""Texts and labels from CSV files."""

from __future__ import annotations

from pathlib import Path

import pytest

from nmlearn.errors import ConfigError, DataError
from nmlearn.lab import data
from nmlearn.lab.data import labelled


def write(path: Path, rows: list[str], head: str = "text,label") -> Path:
    path.write_text("\n".join([head, *rows]) + "\n", encoding="utf-8")
    return path


def rows(count: int = 60) -> list[str]:
    return [f'"a text, number {n}",{"yes" if n % 2 else "no"}' for n in range(count)]


def test_labels_are_numbered_in_their_order_and_texts_are_split_as_elsewhere(tmp_path: Path) -> None:
    task = data.load("csv", write(tmp_path / "x.csv", rows()), length=8)
    texts = [(f"a text, number {n}", n % 2) for n in range(60)]
    train, evaluation = labelled.split(texts)
    assert (task.train_size, task.eval_size, task.classes) == (len(train), len(evaluation), 2)
    tokens, classes = next(task.eval_batches(100))
    assert classes.tolist() == [label for _, label in evaluation] and tokens.shape == (len(evaluation), 8)
    assert task.kind == "text" and task.vocabulary == 8192


def test_other_columns_quotes_and_empty_rows(tmp_path: Path) -> None:
    body = [f'{n},"line one\nline ""two"" {n}",{n % 3}' for n in range(60)] + ["61,,1", "62,no label,", "63, ,2"]
    file = write(tmp_path / "x.csv", body, "id,sentence,class")
    task = data.load("csv", file, text="sentence", label="class")
    assert task.train_size + task.eval_size == 60 and task.classes == 3


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("none.csv", None, "no such file"),
        ("head.csv", "a,b\n1,2\n", "no column text and none label, but a, b"),
        ("empty.csv", "", "no column text.*but none"),
        ("one.csv", "text,label\nx,1\ny,1\n", "2 rows with texts, and 1 different"),
        ("few.csv", "text,label\nx,1\nx,2\n", "nothing to train or to evaluate|few hundred"),
        ("latin.csv", b"text,label\n\xe9\xe8,1\n", "cannot be read"),
        ("short.csv", "text,label\nonly a text\n", "0 rows with texts"),
    ],
)
def test_files_that_are_no_such_table_are_refused(
    tmp_path: Path, name: str, content: str | bytes | None, said: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=said):
        data.load("csv", tmp_path / name)


def test_no_path_is_refused() -> None:
    with pytest.raises(DataError, match=r"data\.path is not set"):
        data.load("csv")
    with pytest.raises(ConfigError, match="length"):
        data.load("csv", "x.csv", length=0)
