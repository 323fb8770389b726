"""A small data set in COCO's layout, and torchvision's two operators where its compiled part does not load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

CATEGORIES = [{"id": 3, "name": "car"}, {"id": 1, "name": "person"}, {"id": 18, "name": "dog"}]  # gaps, and no order


def run_lengths(mask: np.ndarray) -> list[int]:
    """Lengths of zeros, ones, zeros ... down the columns."""
    counts, value = [0], 0
    for pixel in mask.T.flatten().tolist():
        if pixel != value:
            counts.append(0)
            value = pixel
        counts[-1] += 1
    return counts


def as_text(counts: list[int]) -> str:
    """Run lengths as COCO packs them into text."""
    text = ""
    for number, count in enumerate(counts):
        value, more = count - (counts[number - 2] if number > 2 else 0), True
        while more:
            bits = value & 31
            value >>= 5
            more = value != (-1 if bits & 16 else 0)
            text += chr(48 + bits + 32 * more)
    return text


def write_coco(root: Path, images: int = 4, side: int = 64) -> Path:
    """Each image has a polygon, a mask in text and a crowd in numbers; the last image of each part has nothing."""
    image = pytest.importorskip("PIL.Image", reason="needs the optional package pillow")
    random = np.random.default_rng(0)
    (root / "annotations").mkdir(parents=True)
    for part in ("train2017", "val2017"):
        (root / part).mkdir()
        content: dict[str, Any] = {"images": [], "annotations": [], "categories": CATEGORIES}
        for number in range(images):
            width, height = side + 8 * (number % 3), side
            entry = {"id": 100 - number, "file_name": f"{100 - number:012}.jpg", "width": width, "height": height}
            content["images"].append(entry)
            pixels = random.integers(0, 80, (height, width, 3), dtype=np.uint8)
            if number < images - 1:
                found = _instances(entry, random)
                content["annotations"] += [{"id": len(content["annotations"]) + k, **f} for k, f in enumerate(found)]
                for x, y, w, h in (map(int, each["bbox"]) for each in found[:2]):
                    pixels[y : y + h, x : x + w] += 150
            image.fromarray(pixels).save(root / part / entry["file_name"])
        (root / "annotations" / f"instances_{part}.json").write_text(json.dumps(content))
    return root


def _instances(image: dict[str, Any], random: np.random.Generator) -> list[dict[str, Any]]:
    height, width = image["height"], image["width"]
    found = []
    for kind, category in (("polygon", 1), ("text", 3), ("crowd", 18)):
        x, y, w, h = int(random.integers(0, width // 2)), int(random.integers(0, height // 2)), 20, 24
        mask = np.zeros((height, width), np.uint8)
        mask[y : y + h, x : x + w] = 1
        segmentation: Any = [[x, y, x + w, y, x + w, y + h, x, y + h]]
        if kind != "polygon":
            counts = run_lengths(mask)
            segmentation = {"size": [height, width], "counts": as_text(counts) if kind == "text" else counts}
        crowd, box = int(kind == "crowd"), [float(x), float(y), float(w), float(h)]
        entry = {"image_id": image["id"], "category_id": category, "iscrowd": crowd, "bbox": box, "area": w * h}
        found.append({**entry, "segmentation": segmentation})
    return found


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Numbers of the boxes to keep, best first: none that overlaps a better one by more than the threshold."""
    low = torch.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = torch.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(-1)
    overlapping = shared > iou_threshold * (area[:, None] + area[None] - shared)
    kept, gone = [], torch.zeros(len(boxes), dtype=torch.bool)
    for number in scores.argsort(descending=True, stable=True).tolist():
        if not gone[number]:
            kept.append(number)
            gone |= overlapping[number]
    return torch.tensor(kept, dtype=torch.int64)


def provide_operators(monkeypatch: pytest.MonkeyPatch, torchvision: Any) -> None:
    """Let a torchvision without its compiled part detect: with `nms` above and its own roi_align in Python.

    One that fits torch keeps its own.
    """
    from torchvision.ops import boxes, roi_align

    extension = torchvision.extension
    if extension._has_ops():
        return
    module = __import__("sys").modules[roi_align.__module__]
    monkeypatch.setattr(extension, "_assert_has_ops", lambda: None)
    monkeypatch.setattr(boxes, "_assert_has_ops", lambda: None)
    monkeypatch.setattr(boxes, "nms", nms)
    monkeypatch.setattr(module, "_roi_align", module._roi_align.__wrapped__)  # not compiled
