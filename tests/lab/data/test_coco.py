"""COCO's layout, made by the test: boxes, labels, crowds, and masks in all their spellings."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pycocotools.mask
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nmlearn.errors import ConfigError, DataError
from nmlearn.lab import data
from nmlearn.lab.data import outlines
from nmlearn.lab.data.coco import Coco, flip
from small_detection import as_text, run_lengths, write_coco


def loaded(root: Path, **options: object) -> Coco:
    task = data.load("coco", root, **{"workers": 0, **options})
    assert isinstance(task, Coco)
    return task


def test_what_is_read(tmp_path: Path) -> None:
    task = loaded(write_coco(tmp_path), masks=True)
    assert (task.categories, task.classes) == (["person", "car", "dog"], 4)  # in the order of their ids, and background
    assert (task.train_size, task.eval_size) == (3, 4)  # the image without objects is only evaluated on
    images, targets = next(task.eval_batches(4))
    assert [len(each["labels"]) for each in targets] == [0, 3, 3, 3]  # by image id, the one without objects first
    assert targets[0]["boxes"].shape == (0, 4) and targets[0]["masks"].shape == (0, *images[0].shape[1:])
    assert targets[1]["labels"].tolist() == [1, 2, 3] and targets[1]["crowd"].tolist() == [False, False, True]
    for image, target in zip(images, targets, strict=True):
        assert image.dtype == torch.float32 and float(image.min()) >= 0 and float(image.max()) <= 1
        for mask, (left, top, right, bottom) in zip(target["masks"], target["boxes"].int().tolist(), strict=True):
            box = torch.zeros_like(mask)
            box[top:bottom, left:right] = 1
            assert torch.equal(mask, box)  # polygon, text and numbers alike
    for _, targets in task.train_batches(1, epoch=0, seed=0):
        assert targets[0]["labels"].tolist() == [1, 2]  # no crowd


@pytest.mark.parametrize("wrong", [[[1, 2, 3, 4]], {"size": [64, 64]}, 5])
def test_a_wrong_mask_is_named_as_one(wrong: object, tmp_path: Path) -> None:
    write_coco(tmp_path)
    file = tmp_path / "annotations" / "instances_val2017.json"
    found = json.loads(file.read_text())
    for each in found["annotations"]:
        each["segmentation"] = wrong
    file.write_text(json.dumps(found))
    with pytest.raises(DataError, match="has an invalid segmentation") as raised:
        next(loaded(tmp_path, masks=True).eval_batches(4))
    assert "annotation file" in raised.value.fix
    next(loaded(tmp_path).eval_batches(4))  # boxes alone need no masks


def test_without_pycocotools_nothing_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocotools.cocoeval", None)
    with pytest.raises(ConfigError, match="needs pycocotools") as raised:
        loaded(write_coco(tmp_path))
    assert raised.value.fix == "pip install 'nmlearn[detection]'"


def test_flipping_moves_pixels_boxes_and_masks_together(tmp_path: Path) -> None:
    task = loaded(write_coco(tmp_path), masks=True)
    images, targets = next(task.eval_batches(2))
    image, target = flip(images[1], targets[1])
    for mask, (left, top, right, bottom) in zip(target["masks"], target["boxes"].int().tolist(), strict=True):
        assert mask[top:bottom, left:right].all() and mask.sum() == (right - left) * (bottom - top)
    again, same = flip(image, target)
    assert torch.equal(again, images[1]) and torch.equal(same["boxes"], targets[1]["boxes"])


def test_flips_depend_on_seed_epoch_and_number_alone(tmp_path: Path) -> None:
    write_coco(tmp_path, images=9)
    alone, workers, still = loaded(tmp_path), loaded(tmp_path, workers=2), loaded(tmp_path, flip=False)

    def boxes(task: Coco, batch_size: int = 2, epoch: int = 0) -> list[list[list[float]]]:
        batches = task.train_batches(batch_size, epoch=epoch, seed=0)
        return [target["boxes"].tolist() for _, targets in batches for target in targets]

    assert boxes(alone) == boxes(workers) == boxes(alone, batch_size=1) == boxes(workers)
    assert boxes(alone) != boxes(still)
    assert sorted(boxes(still)) == sorted(boxes(still, epoch=1)) and boxes(still) != boxes(still, epoch=1)


def test_files_that_are_not_right(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.path: given nothing"):
        data.load("coco")
    with pytest.raises(DataError, match=r"instances_train2017.json: cannot be read"):
        data.load("coco", tmp_path)
    write_coco(tmp_path)
    image = next((tmp_path / "val2017").iterdir())
    image.write_bytes(image.read_bytes()[:100])
    with pytest.raises(DataError, match=rf"{image.name}: not an image"):
        list(loaded(tmp_path).eval_batches(2))
    file = tmp_path / "annotations" / "instances_val2017.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "categories": content["categories"][:2]}))
    with pytest.raises(DataError, match=r"not a COCO annotation file \(KeyError: 18\)"):
        data.load("coco", tmp_path)
    file.write_text(json.dumps({**content, "categories": [*content["categories"], {"id": 90, "name": "other"}]}))
    with pytest.raises(DataError, match="its categories differ from those of train2017"):
        data.load("coco", tmp_path)


@given(bits=st.lists(st.booleans(), min_size=1, max_size=400), rows=st.integers(1, 20))
def test_run_lengths_and_their_text(bits: list[bool], rows: int) -> None:
    mask = np.array((bits * rows)[: len(bits) // rows * rows or rows], np.uint8).reshape(rows, -1)
    counts = run_lengths(mask)
    assert outlines.lengths(as_text(counts)) == counts
    for spelling in (counts, as_text(counts)):
        assert (outlines.mask({"size": list(mask.shape), "counts": spelling}, *mask.shape) == mask).all()
    theirs = pycocotools.mask.encode(np.asfortranarray(mask))
    assert theirs["counts"].decode() == as_text(counts)


def test_lengths_of_published_texts() -> None:
    # The example in the comments of COCO's API: 1-4-2-... as text; a difference below zero needs the sign bit.
    assert outlines.lengths("0") == [0]
    assert outlines.lengths("P1") == [32]
    assert outlines.lengths("52203") == [5, 2, 2, 2, 5]


def test_polygons() -> None:
    triangle = outlines.fill([[0, 0, 8, 0, 0, 8]], 8, 8)
    assert triangle.sum(axis=1).tolist() == [7, 6, 5, 4, 3, 2, 1, 0]
    outside = outlines.fill([[-5, -5, 20, -5, 20, 20, -5, 20]], 4, 6)
    assert outside.all()
    hole = outlines.fill([[0, 0, 6, 0, 6, 6, 0, 6, 0, 0, 2, 2, 2, 4, 4, 4, 4, 2, 2, 2]], 6, 6)
    assert hole.sum() == 32 and not hole[2:4, 2:4].any()
    two = outlines.mask([[0, 0, 2, 0, 2, 2, 0, 2], [1, 1, 3, 1, 3, 3, 1, 3]], 4, 4)
    assert two.sum() == 7
    assert outlines.mask([], 4, 5).shape == (4, 5) and not outlines.mask([], 4, 5).any()


WRONG = [[[0, 0, 1, 1]], [[0, 0, 4, 0, 4, 4], [0, 0, 1]], [[0, 0, 4, 0, 4, float("nan")]], [[0, 0, 4, 0, 1e12, 4]]]
WRONG += [{"size": [4, 5], "counts": [20]}, {"size": [4, 4], "counts": [15]}, {"size": [4, 4], "counts": ""}]


@pytest.mark.parametrize("segmentation", [*WRONG, {"size": [4, 4], "counts": "P"}, None])
def test_masks_that_are_not_right(segmentation: object) -> None:
    with pytest.raises(ValueError, match=r"polygon|run lengths"):
        outlines.mask(segmentation, 4, 4)
