"""WordNet definitions and plain text."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nmlearn.errors import ConfigError, DataError
from nmlearn.lab import data
from nmlearn.lab.data import labelled, text, wordnet
from small_data import write_definitions

NOUN = "00001740 {label:02} n 01 entity 0 003 ~ 00001930 n 0000 | that which is perceived; 'it was a thing'  "


def test_definitions_are_the_text_before_the_semicolon() -> None:
    lines = ["  29 a licence | line", *(NOUN.format(label=label) for label in (3, 4, 15, 16, 17, 28))]
    found = wordnet.read_definitions(lines)
    assert found == [("that which is perceived", label) for label in (0, 11, 12, 23)]
    assert len(wordnet.NOUN_CLASSES) == 24


def test_words_of_a_text() -> None:
    assert labelled.words("A dog's 2nd (best) friend") == ["a", "dog", "'", "s", "2nd", "(", "best", ")", "friend"]


@given(st.lists(st.tuples(st.text(max_size=4), st.integers(0, 23)), max_size=60))
def test_split_keeps_equal_texts_together(definitions: list[tuple[str, int]]) -> None:
    train, evaluation = labelled.split(definitions)
    assert sorted(train + evaluation) == sorted(definitions)
    assert not {text for text, _ in train} & {text for text, _ in evaluation}
    assert labelled.split(definitions[::-1]) == (train, evaluation)


def test_tokens_are_padded_cut_and_below_the_vocabulary(tmp_path: Path) -> None:
    file = write_definitions(tmp_path / "data.noun")
    task = data.load("wordnet", tmp_path, length=4, vocabulary=5)
    assert task.vocabulary == 5 and task.source == str(file)
    inputs, _ = next(task.eval_batches(100))
    assert inputs.max() < 5 and inputs.shape[1] == 4
    padded = next(data.load("wordnet", tmp_path, length=12).eval_batches(100))[0]
    assert (padded[:, 5:] == labelled.PADDING).all() and (padded[:, :4] != labelled.PADDING).all()


def test_files_without_nouns_are_refused(tmp_path: Path) -> None:
    (tmp_path / "data.noun").write_text("nothing\n")
    with pytest.raises(DataError, match="has no noun definitions"):
        data.load("wordnet", tmp_path)


def test_foreign_tokenizers_are_used_or_refused(tmp_path: Path) -> None:
    file = write_definitions(tmp_path / "data.noun")
    with pytest.raises(ConfigError, match=r"data\.options\.tokenizer.*tokenizers"):
        data.load("wordnet", file, tokenizer=str(tmp_path / "nowhere"))
    tokenizers = pytest.importorskip("tokenizers", reason="needs the optional package tokenizers")
    vocabulary = {"[PAD]": 0, "[UNK]": 1, "a": 2, "definition": 3, "of": 4, "thing": 5}
    own = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    own.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    own.save(str(tmp_path / "tokenizer.json"))
    task = data.load("wordnet", file, tokenizer=str(tmp_path), length=8)
    assert task.vocabulary == 6
    assert next(task.eval_batches(1))[0].tolist() == [[2, 3, 4, 5, 1, 0, 0, 0]]


@pytest.mark.skipif(not wordnet.DEBIAN_FILE.is_file(), reason="needs Debian's package wordnet-base")
def test_debians_wordnet_has_its_published_size() -> None:
    lines = wordnet.DEBIAN_FILE.read_text(encoding="utf-8").splitlines()
    assert len(wordnet.read_definitions(lines)) == 82_115 - 51 - 42  # nouns, without Tops and motive


def test_windows_cover_the_text_without_overlap(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(bytes(range(200)))
    task = data.load("text", tmp_path, length=7)
    assert (task.classes, task.kind, task.bytes_per_token) == (256, "language", 1.0)
    inputs, targets = next(task.train_batches(task.train_size, epoch=3, seed=0))
    assert torch.equal(inputs + 1, targets)
    starts = inputs[:, 0].sort().values
    assert (starts.diff() == 7).all() and targets.max() < 180
    held = torch.cat([inputs.flatten() for inputs, _ in task.eval_batches(2)])
    assert torch.equal(held, torch.arange(180, 180 + 14))


def test_every_start_occurs_and_fits(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(bytes(range(100)))
    task = data.load("text", tmp_path / "a.txt", length=5)
    starts = {int(next(task.train_batches(task.train_size, epoch=e, seed=0))[0].min()) for e in range(60)}
    assert starts == {0, 1, 2, 3, 4}


@given(st.dictionaries(st.text("abc", min_size=1, max_size=5), st.integers(0, 1000), min_size=2))
def test_folders_are_split_by_file(sizes: dict[str, int]) -> None:
    chosen = text.eval_files(sizes)
    assert 1 <= len(chosen) < len(sizes)
    held = sum(sizes[name] for name in chosen)
    smallest = min((size for size in sizes.values() if size), default=0)
    assert held <= max(sum(sizes.values()) * text.EVAL_SHARE, smallest)


def test_no_text_of_an_evaluation_file_is_trained_on(tmp_path: Path) -> None:
    for number in range(20):
        folder = tmp_path / str(number % 3)
        folder.mkdir(exist_ok=True)
        (folder / f"{number}.txt").write_bytes(bytes([65 + number]) * 100)
    task = data.load("text", tmp_path, length=8)
    sides = [
        {byte for inputs, _ in batches for byte in inputs.flatten().tolist()} - {10}
        for batches in (task.train_batches(1, epoch=0, seed=0), task.eval_batches(1))
    ]
    assert not sides[0] & sides[1] and len(sides[1]) == 2


def test_the_first_windows_come_from_all_over_a_folder(tmp_path: Path) -> None:
    for number in range(40):
        folder = tmp_path / ("first" if number < 20 else "second")
        folder.mkdir(exist_ok=True)
        (folder / f"{number:02}.txt").write_bytes((b"a" if number < 20 else b"b") * 100)
    task = data.load("text", tmp_path, length=8, train_limit=100)
    read = torch.cat([inputs.flatten() for inputs, _ in task.train_batches(1, epoch=0, seed=0)]).tolist()
    assert 0.2 < read.count(ord("a")) / len(read) < 0.8


@pytest.mark.parametrize(("size", "said"), [(0, "too short"), (100, "too short")])
def test_too_little_text_is_refused(size: int, said: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"x" * size)
    with pytest.raises(DataError, match=said):
        data.load("text", tmp_path)


def test_folders_without_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no .txt files"):
        data.load("text", tmp_path)


def test_bits_per_byte_of_a_uniform_guess_is_eight() -> None:
    assert math.log(256) / math.log(2) / text.PlainText.bytes_per_token == pytest.approx(8)
