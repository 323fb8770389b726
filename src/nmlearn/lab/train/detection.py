"""Evaluation of detectors with torchvision's interface, from lists of images to dicts of boxes, labels, scores (and
masks)."""

from __future__ import annotations

from itertools import chain, count

import torch
from torch import Tensor, nn

from nmlearn.lab.data import Task
from nmlearn.lab.train.average_precision import average_precision, rows
from nmlearn.lab.train.ranks import Ranks

Found = dict[str, Tensor]


def loss_of(model: nn.Module, images: list[Tensor], targets: list[Found]) -> Tensor:
    """The sum of the losses that a detector in training mode returns."""
    return torch.stack([loss.float() for loss in model(images, targets).values()]).sum()


@torch.no_grad()
def evaluate(model: nn.Module, task: Task, batch_size: int, ranks: Ranks) -> dict[str, float | None]:
    """Mean loss, and box_ap and mask_ap (None without masks), COCO's average precision in [0, 1], over all ranks.

    Detectors sample proposals at random for their loss; here they use a separate generator.

    Args:
        model: in evaluation mode, and left in it.
        task: of kind "detection".
        batch_size: images per batch.
    """
    objects, detected = [], []
    numbers = count(ranks.rank, ranks.size)  # of images: distinct across processes
    total = torch.zeros(3, dtype=torch.float64, device=ranks.device)
    with torch.random.fork_rng([ranks.device] if ranks.device.type == "cuda" else []):
        torch.manual_seed(0)
        for images, targets in task.eval_batches(batch_size, rank=ranks.rank, world=ranks.size):
            loss, masks = float(_loss(model, images, targets)) * len(images), 0
            for found, target in zip(map(_whole, model(images)), targets, strict=True):
                number = next(numbers)
                objects += rows(number, target)
                detected += rows(number, found)
                masks += "masks" in found and "masks" in target
            total += total.new_tensor([loss, len(images), masks])
    loss, images_seen, with_masks = ranks.sum(total).tolist()  # the same on all ranks, even one without images
    objects, detected = (list(chain(*ranks.gather(each))) for each in (objects, detected))
    box_ap = average_precision(objects, detected, "bbox")
    mask_ap = average_precision(objects, detected, "segm") if with_masks else None
    return {"loss": loss / images_seen, "box_ap": box_ap, "mask_ap": mask_ap}


def _loss(model: nn.Module, images: list[Tensor], targets: list[Found]) -> Tensor:
    """The training loss without crowds, while normalisation and dropout stay in evaluation mode."""
    parts = [model, *(getattr(model, name) for name in ("rpn", "roi_heads") if hasattr(model, name))]
    plain = [{key: value[~target["crowd"]] for key, value in target.items()} for target in targets]
    for part in parts:
        part.training = True
    try:
        return loss_of(model, images, plain)
    finally:
        for part in parts:
            part.training = False


def _whole(found: Found) -> Found:
    """Detections with masks of 0 and 1, uint8 [n, H, W], instead of probabilities [n, 1, H, W]."""
    return found | {"masks": (found["masks"][:, 0] > 0.5).byte()} if "masks" in found else found
