"""Files of another writer, right and hostile, kept in corpus/: what is right loads, all else is an error of ours."""

from __future__ import annotations

import random
import resource
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import independent_reader
import nmlearn as nm
from hostile_files import FOLDER, RIGHT, WRONG, corpus
from mutations import damage, forge, lie, split
from nmlearn import cli
from nmlearn.cli import inspect
from nmlearn.errors import FormatError, NMLearnError
from nmlearn.files import model_file
from nmlearn.files.formats.container import NAMES, octets

MEBIBYTE = 1 << 20


def file(name: str) -> Path:
    return FOLDER / f"{name}.safetensors"


def contents(state: dict[str, torch.Tensor]) -> dict[str, tuple[str, list[int], bytes]]:
    """Type, shape and bytes of every tensor."""
    return {
        name: (NAMES[each.dtype], list(each.shape), octets(each).numpy().tobytes() if each.numel() else b"")
        for name, each in state.items()
    }


def test_the_files_kept_are_those_of_the_writer() -> None:
    kept = {path.name.removesuffix(".safetensors"): path.read_bytes() for path in FOLDER.iterdir()}
    assert kept == corpus(), "python tests/support/hostile_files.py writes them again"
    assert sum(map(len, kept.values())) < 200_000


@pytest.mark.parametrize("name", RIGHT)
def test_what_is_right_is_read(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, (_, wanted) = file(name), RIGHT[name]
    assert contents(nm.load(path)) == wanted
    if (
        model_file.stored(path)
        and any(one.encoding for one in model_file.stored(path).values())
        and name != "version_1"
    ):
        assert independent_reader.read(path) == wanted
    assert isinstance(model_file.notes(path), dict)
    for packed in (True, False):
        model_file.convert(path, tmp_path / "again", packed)
        assert contents(nm.load(tmp_path / "again")) == wanted
    for words in (["inspect", path], ["pack", path, tmp_path / "packed"], ["unpack", path, tmp_path / "dense"]):
        assert cli.main([str(word) for word in words]) == 0
    assert all(c.isprintable() or c == "\n" for c in capsys.readouterr().out)


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_refused(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = file(name)
    with pytest.raises(FormatError) as caught:
        nm.load(path)
    assert caught.value.where.startswith(str(path)) and caught.value.wrong and caught.value.fix
    for words in (["inspect", path], ["pack", path, tmp_path / "packed"], ["unpack", path, tmp_path / "dense"]):
        assert cli.main([str(word) for word in words]) == cli.EXIT_ERROR
    captured = capsys.readouterr()
    assert all(c.isprintable() or c == "\n" for c in captured.out + captured.err)
    assert not list(tmp_path.iterdir())


def test_a_model_is_left_alone_by_what_is_wrong() -> None:
    model = torch.nn.Linear(8, 2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name in corpus():
        with pytest.raises(NMLearnError):  # also of those that are right: they are no files of this model
            nm.load(file(name), model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def splice(raw: bytes, rng: random.Random) -> bytes:
    """The beginning of one file and the end of another."""
    other = corpus()[rng.choice(sorted(corpus()))]
    return raw[: rng.randrange(len(raw) + 1)] + other[rng.randrange(len(other) + 1) :]


READERS: dict[str, Callable[[Path], Any]] = {
    "load": nm.load,
    "stored": model_file.stored,
    "notes": model_file.notes,
    "inspect": inspect._read,
    "unpack": lambda path: model_file.convert(path, path.with_name("dense"), packed=False),
    "pack": lambda path: model_file.convert(path, path.with_name("packed")),
}


def read_all(path: Path, raw: bytes) -> int:
    """Read a file by all readers, within bounds of memory; how many of them gave an error, which has to be ours."""
    path.write_bytes(raw)
    refused = 0
    for name, read in READERS.items():
        tracemalloc.start()
        try:
            found = read(path)
        except NMLearnError as error:
            assert error.where and error.wrong and error.fix, name
            refused += 1
        else:
            if name == "load":
                assert sum(
                    tensor.nbytes for tensor in {id(each): each for each in found.values()}.values()
                ) <= 64 * len(raw)
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert peak <= MEBIBYTE + 100 * len(raw), name
    return refused


def most_memory() -> int:
    """The most memory this process ever had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mutated") / "m.safetensors"


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), rng=st.randoms(use_true_random=False))
def test_whatever_is_changed_the_error_is_ours_and_memory_is_bounded(
    place: Path, data: st.DataObject, rng: random.Random
) -> None:
    mutate = data.draw(st.sampled_from([damage, lie, forge, splice]))
    names = sorted(RIGHT) if mutate in (lie, forge) else sorted(corpus())
    raw = corpus()[data.draw(st.sampled_from(names))]
    for _ in range(data.draw(st.integers(1, 3))):
        if raw and not (mutate is forge and not split(raw)[1]):
            raw = mutate(raw, rng)
    before = most_memory()
    read_all(place, raw)
    assert most_memory() - before < 64 * MEBIBYTE


def test_the_bounds_hold_for_the_files_themselves(place: Path) -> None:
    refused = {name: read_all(place, raw) for name, raw in corpus().items()}
    assert not any(refused[name] for name in RIGHT)
    assert all(refused[name] >= 4 for name in WRONG)  # whoever reads headers only may not see what data say
