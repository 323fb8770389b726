"""Average precision as COCO defines it: the mean over categories and ten thresholds of overlap, 0.50 to 0.95.

Detections are matched to objects image by image (`match`); what that gives is small, can be gathered from all
processes, and `average_precision` makes the number of it. All areas, at most 100 detections of a category in an image,
and crowds that take any number of detections without being counted.
"""

from __future__ import annotations

import numpy as np

THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
MOST_DETECTIONS = 100
COLUMNS = 2 + 2 * len(THRESHOLDS)
"""Of the rows of `match`: category, score, then per threshold whether it is a hit, and whether it is not counted."""


def match(
    labels: np.ndarray, scores: np.ndarray, overlaps: np.ndarray, objects: np.ndarray, crowd: np.ndarray
) -> np.ndarray:
    """The detections of one image compared with its objects.

    Args:
        labels, scores: int [d] and float [d] of the detections.
        overlaps: float [d, g]: intersection over union, over the detection's area where the object is a crowd.
        objects, crowd: int [g] categories of the objects, and whether each is a crowd, bool [g].

    Returns:
        float64 [at most d, COLUMNS], best scores of each category first.
    """
    rows = [np.zeros((0, COLUMNS))]
    for category in np.unique(labels):
        mine = np.flatnonzero(labels == category)
        mine = mine[np.argsort(-scores[mine], kind="stable")][:MOST_DETECTIONS]
        theirs = np.flatnonzero(objects == category)
        hit, ignored = _hits(overlaps[np.ix_(mine, theirs)], crowd[theirs])
        rows.append(np.column_stack([np.full(len(mine), category), scores[mine], hit, ignored]))
    return np.concatenate(rows)


def _hits(overlaps: np.ndarray, crowd: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For detections of one category, best first, and each threshold: bool [d, 10] a hit, bool [d, 10] not counted.

    A detection takes the free object that it overlaps most, and a crowd only when there is none.
    """
    detections, objects = overlaps.shape
    hit = np.zeros((detections, len(THRESHOLDS)), bool)
    ignored = np.zeros_like(hit)
    taken = np.zeros((len(THRESHOLDS), objects), bool)
    if objects:
        for number, overlap in enumerate(overlaps):
            enough = overlap >= THRESHOLDS[:, None] - 1e-10
            free = enough & ~crowd & ~taken
            best = np.where(free, overlap, -1).argmax(axis=1)
            hit[number] = free.any(axis=1)
            taken[np.flatnonzero(hit[number]), best[hit[number]]] = True
            ignored[number] = ~hit[number] & (enough & crowd).any(axis=1)
    return hit, ignored


def average_precision(rows: np.ndarray, counts: np.ndarray) -> float | None:
    """In [0, 1]; None when there are no objects.

    Args:
        rows: of `match`, of all images.
        counts: int [categories], how many objects there are of each, crowds not counted.
    """
    found = [_precision(rows[rows[:, 0] == category], count) for category, count in enumerate(counts.tolist()) if count]
    return float(np.mean(found)) if found else None


def _precision(rows: np.ndarray, objects: int) -> float:
    """Of one category: the precision at 101 recalls, made falling, averaged over thresholds."""
    rows = rows[np.argsort(-rows[:, 1], kind="stable")]
    hits, ignored = np.split(rows[:, 2:].astype(bool), 2, axis=1)
    found = []
    for hit, counted in zip(hits.T, ~ignored.T, strict=True):
        right = np.cumsum(hit[counted])
        precision = right / np.arange(1, len(right) + 1)
        precision = np.maximum.accumulate(precision[::-1])[::-1]
        places = np.searchsorted(right / objects, RECALLS, side="left")
        found.append(np.append(precision, 0.0)[np.minimum(places, len(precision))].mean())
    return float(np.mean(found))
