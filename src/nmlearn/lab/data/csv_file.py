"""Text classification on any CSV file with a header: a column of texts and one of labels."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from nmlearn.errors import DataError
from nmlearn.lab.data.labelled import LabelledOptions, LabelledTexts
from nmlearn.lab.data.options import parse
from nmlearn.lab.data.task import Task

GET_IT = (
    "set data.path to a CSV file with a header, such as text,label, and name other columns with data.text, data.label"
)


@dataclass(frozen=True)
class CsvOptions(LabelledOptions):
    """Options of "csv".

    Attributes:
        text, label: the names of the columns. Labels are any texts; classes are numbered in their sorted order.
    """

    text: str = "text"
    label: str = "label"


def csv_file(path: Path | None = None, **options: object) -> Task:
    """The texts and labels of a CSV file in UTF-8; a tenth of them, by the hash of the text, is for evaluation.

    Raises:
        ConfigError: an option is wrong, or the package for the given tokenizer is missing.
        DataError: the file is missing or no such table, or has less than two labels.
    """
    settings = parse(CsvOptions, options)
    if path is None or not path.is_file():
        wrong = "data.path is not set" if path is None else "no such file"
        raise DataError(where="data.path", given=path or "nothing", wrong=wrong, fix=GET_IT)
    rows = _rows(path, settings)
    labels = sorted({label for _, label in rows})
    if len(labels) < 2:
        wrong = f"it has {len(rows)} rows with texts, and {len(labels)} different labels"
        raise DataError(where="data.path", given=path, wrong=wrong, fix=GET_IT)
    numbers = {label: number for number, label in enumerate(labels)}
    texts = [(text, numbers[label]) for text, label in rows]
    task = LabelledTexts("csv", texts, len(labels), str(path), settings)
    if not task.train_size or not task.eval_size:
        wrong = f"its {len(rows)} rows leave nothing to train or to evaluate with"
        raise DataError(where="data.path", given=path, wrong=wrong, fix="give a few hundred rows at least")
    return task


def _rows(path: Path, options: CsvOptions) -> list[tuple[str, str]]:
    """Texts and labels, both not empty."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            columns = list(reader.fieldnames or ())
            missing = [name for name in (options.text, options.label) if name not in columns]
            if missing:
                wrong = f"it has no column {' and none '.join(missing)}, but {', '.join(columns) or 'none'}"
                raise DataError(where="data.path", given=path, wrong=wrong, fix=GET_IT)
            found = [(row[options.text], row[options.label]) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(where="data.path", given=path, wrong=f"cannot be read: {error}", fix=GET_IT) from error
    return [(text.strip(), label.strip()) for text, label in found if text and label and text.strip() and label.strip()]
