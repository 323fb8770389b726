"""CIFAR archives made by the test in the real layout, and pickles that must not be believed."""

from __future__ import annotations

import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from nmlearn.errors import DataError
from nmlearn.lab import data
from nmlearn.lab.data.cifar import CIFAR10, CIFAR100, Archive, read_pickle
from small_cifar import batch, unpacked


def packed(archive: Archive, root: Path) -> Path:
    folder, file = unpacked(archive, root / "unpacked"), root / archive.file
    with tarfile.open(file, "w:gz") as tar:
        tar.add(folder, arcname=archive.folder)
    return file


@pytest.mark.parametrize("archive", [CIFAR10, CIFAR100], ids=lambda archive: archive.name)
def test_archive_and_folder_hold_the_same(archive: Archive, tmp_path: Path) -> None:
    file = packed(archive, tmp_path)
    folder = tmp_path / "unpacked" / archive.folder
    batches = []
    for path in (file, tmp_path, folder, folder.parent):
        task = data.load(archive.name, path, augment="none")
        assert task.train_size == 20 * len(archive.train) and task.eval_size == 20
        assert task.classes == archive.classes and task.input_shape == (3, 32, 32)
        batches.append(next(task.eval_batches(20)))
    pixels = pickle.loads((folder / archive.test).read_bytes())[b"data"].reshape(20, 3, 32, 32)
    mean, std = (np.array(x).reshape(3, 1, 1) for x in (archive.mean, archive.std))
    expected = torch.from_numpy((pixels / 255 - mean) / std).float()
    for inputs, targets in batches:
        assert torch.allclose(inputs, expected, atol=1e-5)
        assert torch.equal(targets, torch.arange(20) % archive.classes)


def test_pickles_of_python_2_are_read() -> None:
    """The real archives were written by Python 2 at protocol 2, with its strings and numpy's old place."""
    raw = (
        b"\x80\x02}q\x01(U\x04dataq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04K\x00\x85U\x01b\x87Rq\x05"
        b"(K\x01K\x01K\x02\x86cnumpy\ndtype\nq\x06U\x02u1K\x00K\x01\x87Rq\x07(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89U\x02\x07\x09tbU\x06labelsq\x08]q\x09K\x03au."
    )
    content = read_pickle(raw, "data_batch_1")
    assert content[b"labels"] == [3] and content[b"data"].tolist() == [[7, 9]]


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4])
def test_every_protocol_of_plain_pickles_is_read(protocol: int) -> None:
    content = read_pickle(batch(CIFAR10, 3, 0, protocol), "x")
    assert content[b"data"].shape == (3, 3072) and content[b"data"].dtype == np.uint8


class Malicious:
    def __init__(self, function: object, *args: object) -> None:
        self.call = (function, args)

    def __reduce__(self) -> object:
        return self.call


def test_malicious_pickles_are_refused_and_not_run(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    for function, args in (
        (exec, (f"open({str(victim)!r}, 'w')",)),
        (open, (str(victim), "w")),
        (Path.touch, (victim,)),
    ):
        folder = unpacked(CIFAR10, tmp_path / getattr(function, "__name__", "touch"))
        (folder / "data_batch_3").write_bytes(pickle.dumps({b"data": Malicious(function, *args)}))
        with pytest.raises(DataError, match=r"data_batch_3.*is not data"):
            data.load("cifar10", folder)
    assert not victim.exists()


@pytest.mark.parametrize(
    "content",
    [np.array([print], dtype=object), np.random.default_rng(0), Malicious(np.ndarray, (10**15,), "u1"), {1, 2}],
)
def test_other_objects_are_refused(content: object) -> None:
    raw = pickle.dumps(content, protocol=2)
    try:
        result = read_pickle(raw, "x")
    except DataError:
        return
    assert isinstance(result, np.ndarray) and result.size == 0  # `ndarray` itself is called as the empty array


def test_strange_encodings_are_refused() -> None:
    import _codecs

    with pytest.raises(DataError, match="encoding"):
        read_pickle(pickle.dumps(Malicious(_codecs.encode, "x", "rot13"), protocol=2), "x")


@pytest.mark.parametrize(
    "content",
    [
        [1, 2],
        {b"data": b"x"},
        {b"data": np.zeros((2, 3072), np.float32), b"labels": [1, 2]},
        {b"data": np.zeros((2, 3000), np.uint8), b"labels": [1, 2]},
        {b"data": np.zeros((2, 3072), np.uint8), b"labels": [1]},
        {b"data": np.zeros((2, 3072), np.uint8), b"labels": [1, 10]},
    ],
)
def test_wrong_contents_are_named(content: object, tmp_path: Path) -> None:
    folder = unpacked(CIFAR10, tmp_path)
    (folder / "data_batch_2").write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(DataError, match=r"data_batch_2.*labels below 10"):
        data.load("cifar10", folder)


def test_damaged_archives_are_named(tmp_path: Path) -> None:
    file = packed(CIFAR100, tmp_path)
    whole = file.read_bytes()
    for raw in (whole[: len(whole) // 2], b"no archive"):
        file.write_bytes(raw)
        with pytest.raises(DataError, match=r"cifar-100-python.tar.gz.*not a complete tar archive"):
            data.load("cifar100", file)
    with tarfile.open(file, "w:gz") as tar:
        member = tarfile.TarInfo(f"{CIFAR100.folder}/train")
        tar.addfile(member, io.BytesIO(b""))
    with pytest.raises(DataError, match="no test inside"):
        data.load("cifar100", file)


def test_missing_batches_are_named(tmp_path: Path) -> None:
    folder = unpacked(CIFAR10, tmp_path)
    (folder / "data_batch_4").unlink()
    with pytest.raises(DataError, match=r"no file data_batch_4"):
        data.load("cifar10", tmp_path)
