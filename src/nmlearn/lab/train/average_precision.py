"""Average precision as COCO defines it, by pycocotools: the mean over categories and ten IoU thresholds, 0.50 to 0.95,
over all areas, with at most 100 detections per category and image."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
from torch import Tensor

MOST_DETECTIONS = 100
Row = dict[str, Any]


def rows(image: int, found: dict[str, Tensor]) -> list[Row]:
    """Objects or detections of one image as pycocotools expects them: plain numbers and text, which can be pickled.

    Args:
        image: its number among all images.
        found: boxes [n, 4] as x0, y0, x1, y1; labels int [n]; scores [n] of detections; crowd bool [n] of objects;
            given masks uint8 [n, H, W], each row has run lengths too.
    """
    boxes = found["boxes"].cpu().double()  # float32 corners, whose differences are exact in float64
    extents = (boxes[:, 2:] - boxes[:, :2]).tolist()
    scores, crowd = (found[key].tolist() if key in found else [0] * len(boxes) for key in ("scores", "crowd"))
    given = zip(found["labels"].tolist(), boxes[:, :2].tolist(), extents, scores, crowd, strict=True)
    made = [
        {"image_id": image, "category_id": label, "score": score, "iscrowd": int(is_crowd)}
        | {"bbox": [*corner, *extent], "area": extent[0] * extent[1]}
        for label, corner, extent, score, is_crowd in given
    ]
    if "masks" in found:
        from pycocotools import mask

        shapes = mask.encode(np.asfortranarray(found["masks"].permute(1, 2, 0).cpu().numpy()))
        made = [row | {"segmentation": shape} for row, shape in zip(made, shapes, strict=True)]
    return made


def average_precision(objects: list[Row], found: list[Row], kind: str) -> float | None:
    """In [0, 1]; None when there are no objects other than crowds.

    Args:
        objects: rows of all images (see `rows`). A crowd matches any number of detections and counts for nothing.
        found: rows of the detections in all images.
        kind: "bbox" compares boxes, "segm" masks.
    """
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):  # it prints progress
        evaluation = COCOeval(_indexed(objects, [*objects, *found]), _indexed(found, found), kind)
        asked = evaluation.params
        asked.maxDets, asked.areaRng, asked.areaRngLbl = [MOST_DETECTIONS], asked.areaRng[:1], asked.areaRngLbl[:1]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"]
    precision = precision[precision > -1]  # -1: a category without objects
    return float(precision.mean()) if precision.size else None


def _indexed(rows: list[Row], known: list[Row]) -> Any:
    """The rows as a COCO object with the images and categories of ``known``."""
    from pycocotools.coco import COCO

    coco = COCO()
    coco.dataset = {
        "images": [{"id": row["image_id"], "height": 0, "width": 0} for row in known],  # run lengths contain sizes
        "categories": [{"id": row["category_id"]} for row in known],
        "annotations": [row | {"id": number} for number, row in enumerate(rows, start=1)],  # 0 would mean "no match"
    }
    coco.createIndex()
    return coco
