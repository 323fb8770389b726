"""COCO's three encodings of an instance's mask: polygons, and run lengths as numbers or as text.

pycocotools fills the polygons. It does not check run lengths: where they fall short of the image it returns
uninitialised memory. They are therefore decoded here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

FARTHEST = 1e6  # pixels from the image's corner: pycocotools walks along all edges, and does not handle NaN


def mask(segmentation: Any, height: int, width: int) -> np.ndarray:
    """The mask, uint8 [height, width] of 0 and 1.

    Args:
        segmentation: as in an annotation: a list of polygons [x0, y0, x1, y1, ...] in pixels, or a mapping with
            "size" [height, width] and "counts", a list of run lengths or their text encoding.

    Raises:
        ValueError: it is neither, or its size differs.
    """
    if isinstance(segmentation, list):
        return fill(segmentation, height, width)
    runs_told = isinstance(segmentation, dict) and "counts" in segmentation
    if not runs_told or list(segmentation.get("size", [])) != [height, width]:
        raise ValueError(f"a segmentation that is not polygons or run lengths of {height} x {width} pixels")
    counts = segmentation["counts"]
    return runs(lengths(counts) if isinstance(counts, str | bytes) else counts, height, width)


def fill(polygons: Sequence[Sequence[float]], height: int, width: int) -> np.ndarray:
    """Polygons, implicitly closed, as uint8 [height, width]."""
    from pycocotools import mask as coco

    for polygon in polygons:
        corners = np.asarray(polygon, np.float64)
        farthest = np.abs(corners).max(initial=0)
        if corners.size < 6 or corners.size % 2 or not farthest < FARTHEST:
            given = f"a polygon of {corners.size} numbers up to {farthest:g}"
            raise ValueError(f"{given}: it needs x and y, in pixels, of three corners or more")
    if not polygons:
        return np.zeros((height, width), np.uint8)
    drawn = coco.merge(coco.frPyObjects(polygons, height, width))
    return runs(lengths(drawn["counts"]), height, width)


def runs(counts: Sequence[int], height: int, width: int) -> np.ndarray:
    """Run lengths of zeros, ones, zeros ... in column-major order, as uint8 [height, width].

    Raises:
        ValueError: a negative length, or they do not add up to the image.
    """
    if any(count < 0 for count in counts) or sum(counts) != height * width:
        raise ValueError(f"run lengths that are not those of {height} x {width} pixels")
    values = np.arange(len(counts)) % 2
    return np.repeat(values, counts).astype(np.uint8).reshape(width, height).T.copy()


def lengths(text: str | bytes) -> list[int]:
    """Run lengths from their text: each character, from 48 up, holds five bits and a continuation bit. From the
    third one on, each is stored as the difference from the one two places before.

    Raises:
        ValueError: the text ends in the middle of a number or has other characters.
    """
    codes = [code - 48 for code in (text.encode("ascii") if isinstance(text, str) else text)]
    if any(not 0 <= code < 64 for code in codes) or (codes and codes[-1] & 32):
        raise ValueError("run lengths whose text is damaged")
    found: list[int] = []
    value = shift = 0
    for code in codes:
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        if code & 16:  # the sign
            value -= 1 << shift
        found.append(value + (found[-2] if len(found) > 2 else 0))
        value = shift = 0
    return found
