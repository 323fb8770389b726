"""Evaluation of detectors with torchvision's interface: lists of images in, dicts of boxes, labels, scores (and masks)
out."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from nmlearn.lab.data import Task
from nmlearn.lab.train.average_precision import average_precision, match
from nmlearn.lab.train.ranks import Ranks

Found = dict[str, Tensor]


def loss_of(model: nn.Module, images: list[Tensor], targets: list[Found]) -> Tensor:
    """The sum of the losses that a detector in training mode returns."""
    return torch.stack([loss.float() for loss in model(images, targets).values()]).sum()


@torch.no_grad()
def evaluate(model: nn.Module, task: Task, batch_size: int, ranks: Ranks) -> dict[str, float | None]:
    """Mean loss, and box_ap and mask_ap (None without masks), COCO's average precision in [0, 1], over all ranks.

    Detectors draw proposals at random for their loss: they do so from a generator of their own here.

    Args:
        model: in evaluation mode; left in it.
        task: of kind "detection".
        batch_size: images at once.
    """
    boxes, masks = [], []
    counts = torch.zeros(task.classes, dtype=torch.int64)
    total = torch.zeros(2, dtype=torch.float64, device=ranks.device)
    with torch.random.fork_rng([ranks.device] if ranks.device.type == "cuda" else []):
        torch.manual_seed(0)
        for images, targets in task.eval_batches(batch_size, rank=ranks.rank, world=ranks.size):
            total += total.new_tensor([float(_loss(model, images, targets)) * len(images), len(images)])
            for found, target in zip(model(images), targets, strict=True):
                counts += torch.bincount(target["labels"][~target["crowd"]].cpu(), minlength=task.classes)
                boxes.append(_match(found, target, box_overlaps(found["boxes"], target["boxes"], target["crowd"])))
                if "masks" in found and "masks" in target:
                    shapes = (found["masks"][:, 0] > 0.5).flatten(1), target["masks"].flatten(1)
                    masks.append(_match(found, target, mask_overlaps(*shapes, target["crowd"])))
    total = torch.cat([total, total.new_tensor([len(masks)])])
    loss, images_seen, with_masks = ranks.sum(total).tolist()  # the same on all ranks, also on one without images
    counted = torch.stack(ranks.gather(counts)).sum(0).numpy()
    box_ap = average_precision(_gathered(boxes, ranks), counted)
    mask_ap = average_precision(_gathered(masks, ranks), counted) if with_masks else None
    return {"loss": loss / images_seen, "box_ap": box_ap, "mask_ap": mask_ap}


def box_overlaps(found: Tensor, objects: Tensor, crowd: Tensor) -> Tensor:
    """Intersection over union of boxes [d, 4] and [g, 4], over the area of the first where the second is a crowd.

    Returns:
        float64 [d, g] on the CPU: in float32 an overlap of exactly 0.65, 0.70 or 0.90 would miss its threshold.
    """
    found, objects, crowd = found.cpu().double(), objects.cpu().double(), crowd.cpu()
    low = torch.maximum(found[:, None, :2], objects[None, :, :2])
    high = torch.minimum(found[:, None, 2:], objects[None, :, 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    return _over_union(shared, _area(found), _area(objects), crowd)


def mask_overlaps(found: Tensor, objects: Tensor, crowd: Tensor) -> Tensor:
    """The same of masks, one a row: [d, pixels] and [g, pixels]."""
    found, objects = found.float(), objects.float()
    with torch.autocast(found.device.type, enabled=False):  # counts of pixels need more than 8 bits
        shared = (found @ objects.T).cpu().double()
    return _over_union(shared, found.sum(1).cpu().double(), objects.sum(1).cpu().double(), crowd.cpu())


def _area(boxes: Tensor) -> Tensor:
    return (boxes[:, 2:] - boxes[:, :2]).prod(-1)


def _over_union(shared: Tensor, found: Tensor, objects: Tensor, crowd: Tensor) -> Tensor:
    union = torch.where(crowd[None], found[:, None], found[:, None] + objects[None] - shared)
    return shared / union.clamp(min=1e-9)


def _loss(model: nn.Module, images: list[Tensor], targets: list[Found]) -> Tensor:
    """The training loss without crowds, while everything that normalises or drops stays in evaluation mode."""
    parts = [model, *(getattr(model, name) for name in ("rpn", "roi_heads") if hasattr(model, name))]
    plain = [{key: value[~target["crowd"]] for key, value in target.items()} for target in targets]
    for part in parts:
        part.training = True
    try:
        return loss_of(model, images, plain)
    finally:
        for part in parts:
            part.training = False


def _match(found: Found, target: Found, overlaps: Tensor) -> np.ndarray:
    arrays = (found["labels"], found["scores"].float(), overlaps, target["labels"], target["crowd"])
    return match(*(each.cpu().numpy() for each in arrays))


def _gathered(rows: list[np.ndarray], ranks: Ranks) -> np.ndarray:
    mine = np.concatenate(rows) if rows else match(*(np.zeros(s) for s in (0, 0, (0, 0), 0, 0)))
    return torch.cat(ranks.gather(torch.from_numpy(mine))).numpy()
