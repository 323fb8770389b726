"""Laws that every data source obeys, checked on small sources in the real file formats."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nmlearn.errors import ConfigError, DataError, NMLearnError
from nmlearn.lab import data
from small_data import equal, numbered, write_definitions, write_images


@pytest.fixture(params=["fashion-mnist", "image-folder", "wordnet", "text"])
def task(request: pytest.FixtureRequest, tmp_path: Path) -> data.Task:
    if request.param == "fashion-mnist":
        return data.load("fashion-mnist", train_limit=40, eval_limit=13, mixup=0.2)
    if request.param == "image-folder":
        return data.load("image-folder", write_images(tmp_path), image_size=16, workers=0)
    if request.param == "wordnet":
        return data.load("wordnet", write_definitions(tmp_path / "data.noun"), length=8, vocabulary=50)
    (tmp_path / "book.txt").write_bytes(bytes(range(256)) * 4)
    return data.load("text", tmp_path / "book.txt", length=16)


def test_training_batches_are_a_function_of_seed_and_epoch(task: data.Task) -> None:
    state = torch.get_rng_state()
    first = list(task.train_batches(3, epoch=1, seed=5))
    torch.rand(7)  # the global generator has no say
    assert equal(first, list(task.train_batches(3, epoch=1, seed=5)))
    assert not equal(first, list(task.train_batches(3, epoch=2, seed=5)))
    assert not equal(first, list(task.train_batches(3, epoch=1, seed=6)))
    torch.set_rng_state(state)
    list(task.train_batches(3, epoch=0, seed=0))
    list(task.eval_batches(3))
    assert torch.equal(state, torch.get_rng_state())


def test_skipping_gives_the_batches_of_the_unskipped_epoch(task: data.Task) -> None:
    whole = list(task.train_batches(2, epoch=0, seed=1))
    assert len(whole) == task.train_size // 2
    for skip in (1, len(whole) - 1, len(whole)):
        assert equal(whole[skip:], list(task.train_batches(2, epoch=0, seed=1, skip=skip)))


def test_batches_have_the_promised_shapes(task: data.Task) -> None:
    for inputs, targets in (next(task.train_batches(3, epoch=0, seed=0)), next(task.eval_batches(3))):
        assert inputs.shape == (3, *task.input_shape)
        assert inputs.dtype == (torch.float32 if task.kind == "image" else torch.int64)
        if task.kind == "language":
            assert torch.equal(inputs[:, 1:], targets[:, :-1])
        elif targets.dtype == torch.float32:
            assert targets.shape == (3, task.classes)
        else:
            assert targets.shape == (3,) and int(targets.max()) < task.classes


def test_evaluation_sees_every_example_once_over_all_ranks(task: data.Task) -> None:
    alone = torch.cat([inputs for inputs, _ in task.eval_batches(5)])
    assert len(alone) == task.eval_size
    shares = [torch.cat([inputs for inputs, _ in task.eval_batches(2, rank=rank, world=3)]) for rank in range(3)]
    together = torch.empty_like(alone)
    for rank, share in enumerate(shares):
        together[rank::3] = share
    assert torch.equal(alone, together)


@given(size=st.integers(1, 60), batch=st.integers(1, 8), world=st.integers(1, 4), seed=st.integers(0, 2**40))
def test_ranks_share_no_training_example(size: int, batch: int, world: int, seed: int) -> None:
    task = numbered(size)
    if size < batch * world:
        with pytest.raises(ConfigError, match="less than one batch"):
            task.train_batches(batch, epoch=0, seed=seed, world=world)
        return
    epochs = [list(task.train_batches(batch, epoch=0, seed=seed, rank=rank, world=world)) for rank in range(world)]
    assert {len(epoch) for epoch in epochs} == {size // (batch * world)}
    labels = torch.cat([labels for epoch in epochs for _, labels in epoch])
    assert len(labels.unique()) == len(labels)
    alone = list(task.train_batches(batch * world, epoch=0, seed=seed))
    for step, (_, expected) in enumerate(alone):  # the world's size does not change what a step sees
        assert torch.equal(expected, torch.cat([epoch[step][1] for epoch in epochs]))


@given(size=st.integers(1, 60), batch=st.integers(1, 70), world=st.integers(1, 70))
def test_evaluation_is_a_partition_for_any_world(size: int, batch: int, world: int) -> None:
    task = numbered(1, size)
    labels = [labels for rank in range(world) for _, labels in task.eval_batches(batch, rank=rank, world=world)]
    assert torch.equal(torch.cat(labels).sort().values, torch.arange(size))


def test_limits_take_the_first_examples() -> None:
    task = numbered(30, 20, train_limit=7, eval_limit=5)
    assert (task.train_size, task.eval_size) == (7, 5)
    seen = torch.cat([labels for _, labels in task.train_batches(7, epoch=0, seed=0)])
    assert torch.equal(seen.sort().values, torch.arange(7))


@pytest.mark.parametrize(
    ("name", "path", "options", "said"),
    [
        ("fashion", None, {}, "fashion-mnist"),
        ("fashion-mnist", None, {"train_limt": 3}, "train_limit"),
        ("fashion-mnist", None, {"train_limit": 0}, "positive"),
        ("fashion-mnist", None, {"train_limit": "many"}, "whole number"),
        ("fashion-mnist", None, {"augment": "rotate"}, "crop-flip"),
        ("fashion-mnist", None, {"crop_scale": 0.0}, "0.25"),
        ("fashion-mnist", None, {"mixup": -1.0}, "negative"),
        ("fashion-mnist", None, {"image_size": 0}, "positive"),
        ("fashion-mnist", "/nowhere", {}, "fashion-mnist-full"),
        ("fashion-mnist-full", "/nowhere", {}, "dataset-fashion-mnist"),
        ("cifar10", "/nowhere", {}, "cifar-10-python.tar.gz"),
        ("cifar100", "/nowhere", {}, "cifar-100-python.tar.gz"),
        ("image-folder", None, {}, "train/CLASS/"),
        ("image-folder", "/nowhere", {}, "train/CLASS/"),
        ("image-folder", "/nowhere", {"workers": -1}, "negative"),
        ("wordnet", "/nowhere", {}, "wordnet-base"),
        ("text", None, {}, ".txt"),
        ("text", "/nowhere", {"length": 0}, "128"),
    ],
)
def test_errors_have_four_parts(name: str, path: str | None, options: dict[str, object], said: str) -> None:
    with pytest.raises((ConfigError, DataError)) as caught:
        data.load(name, path, **options)
    error: NMLearnError = caught.value
    assert error.where and error.given and error.wrong and error.fix
    assert said in f"{error.wrong} {error.fix}"


def test_none_means_the_default() -> None:
    assert data.load("fashion-mnist", train_limit=None, augment=None).train_size == 10_000


@pytest.mark.parametrize("changes", [{"batch_size": 0}, {"rank": 2, "world": 2}])
def test_impossible_batches_are_refused(changes: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        numbered(8).train_batches(**{"batch_size": 2, "epoch": 0, "seed": 0, **changes})
