"""COCO's average precision and run lengths against COCO's own code, pycocotools."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest
import torch
from pycocotools import mask as run_lengths
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from nmlearn.lab.data import outlines
from nmlearn.lab.train.average_precision import average_precision, match
from nmlearn.lab.train.detection import box_overlaps

CATEGORIES = 4
IMAGES = 12


def random_boxes(count: int, rng: np.random.Generator) -> np.ndarray:
    """float64 [count, 4]: left, top, right, bottom; multiples of 1/4, exact in float32."""
    corner, size = rng.integers(0, 240, (count, 2)), rng.integers(20, 240, (count, 2))
    return np.concatenate([corner, corner + size], 1) / 4


def random_picture(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Objects, some of them crowds, and up to 150 detections: objects moved a little, and anything."""
    objects = int(rng.integers(0, 9))
    boxes, labels = random_boxes(objects, rng), rng.integers(1, CATEGORIES + 1, objects)
    near = rng.integers(0, objects, int(rng.integers(0, 120))) if objects else np.zeros(0, int)
    moved = boxes[near] + rng.integers(-12, 13, (len(near), 4)) / 4
    moved[:, 2:] = np.maximum(moved[:, 2:], moved[:, :2] + 1)
    anything = int(rng.integers(0, 30))
    return {
        "boxes": boxes,
        "labels": labels,
        "crowd": rng.random(objects) < 0.2,
        "found": np.concatenate([moved, random_boxes(anything, rng)]),
        "found_labels": np.concatenate([labels[near], rng.integers(1, CATEGORIES + 1, anything)]),
    }


def ours(pictures: list[dict[str, np.ndarray]], scores: list[np.ndarray]) -> float | None:
    rows, counts = [], np.zeros(CATEGORIES + 1, int)
    for one, score in zip(pictures, scores, strict=True):
        boxes = [torch.tensor(one[key], dtype=torch.float32).reshape(-1, 4) for key in ("found", "boxes")]
        overlaps = box_overlaps(*boxes, torch.tensor(one["crowd"])).numpy()
        rows.append(match(one["found_labels"], score, overlaps, one["labels"], one["crowd"]))
        counts += np.bincount(one["labels"][~one["crowd"]], minlength=CATEGORIES + 1)
    return average_precision(np.concatenate(rows), counts)


def theirs(pictures: list[dict[str, np.ndarray]], scores: list[np.ndarray]) -> float:
    def box(corners: np.ndarray) -> list[float]:
        return [*corners[:2], *(corners[2:] - corners[:2])]

    annotations, detections = [], []
    for image, (one, score) in enumerate(zip(pictures, scores, strict=True)):
        for corners, label, crowd in zip(one["boxes"], one["labels"], one["crowd"], strict=True):
            place = {"id": len(annotations) + 1, "image_id": image, "category_id": int(label), "bbox": box(corners)}
            annotations.append(place | {"iscrowd": int(crowd), "area": place["bbox"][2] * place["bbox"][3]})
        for corners, label, sure in zip(one["found"], one["found_labels"], score, strict=True):
            detections.append({"image_id": image, "category_id": int(label), "bbox": box(corners), "score": sure})
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "info": {},
            "images": [{"id": image} for image in range(len(pictures))],
            "categories": [{"id": label} for label in range(1, CATEGORIES + 1)],
            "annotations": annotations,
        }
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(detections), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0])


@pytest.mark.parametrize("seed", range(10))
def test_the_number_is_that_of_pycocotools(seed: int) -> None:
    rng = np.random.default_rng(seed)
    pictures = [random_picture(rng) for _ in range(IMAGES)]
    total = sum(len(one["found"]) for one in pictures)
    ranks = iter(rng.permutation(total) / total)  # all different: nothing is said about equal scores
    scores = [np.array([next(ranks) for _ in one["found"]]) for one in pictures]
    expected = theirs(pictures, scores)
    assert 0.01 < expected < 0.9
    assert ours(pictures, scores) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 1.0])
def test_masks_in_run_lengths_are_those_of_pycocotools(share: float) -> None:
    rng = np.random.default_rng(0)
    for height, width in [(1, 1), (7, 3), (60, 81)]:
        mask = (rng.random((height, width)) < share).astype(np.uint8)
        written = run_lengths.encode(np.asfortranarray(mask))
        segmentation = {"size": list(written["size"]), "counts": written["counts"].decode()}
        assert (outlines.mask(segmentation, height, width) == mask).all()
