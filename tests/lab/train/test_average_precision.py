"""COCO's average precision, against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nmlearn.lab import data
from nmlearn.lab.train.average_precision import average_precision, match
from nmlearn.lab.train.detection import box_overlaps, evaluate, mask_overlaps
from nmlearn.lab.train.ranks import Ranks
from small_detection import write_coco


def rows(labels, scores, overlaps, objects, crowd=None):
    crowd = np.zeros(len(objects), bool) if crowd is None else np.array(crowd)
    shape = (len(labels), len(objects))
    return match(np.array(labels), np.array(scores), np.array(overlaps, float).reshape(shape), np.array(objects), crowd)


def test_all_found():
    found = rows([1, 2], [0.9, 0.8], [[1, 0], [0, 1]], [1, 2])
    assert average_precision(found, np.array([0, 1, 1])) == pytest.approx(1)


def test_overlap_decides_how_many_thresholds_count():
    found = rows([1], [0.9], [[0.72]], [1])  # 0.50, 0.55, 0.60, 0.65 and 0.70
    assert average_precision(found, np.array([0, 1])) == pytest.approx(0.5)
    on_the_edge = rows([1], [0.9], [[0.75]], [1])
    assert average_precision(on_the_edge, np.array([0, 1])) == pytest.approx(0.6)


def test_order_and_misses():
    # A wrong one between two right ones, two of three objects: precision 1 up to recall 1/3, 2/3 up to 2/3, then 0.
    found = rows([1, 1, 1], [0.9, 0.8, 0.7], [[1, 0, 0], [0, 0, 0], [0, 1, 0]], [1, 1, 1])
    expected = (34 * 1 + 33 * 2 / 3) / 101  # recalls 0 to 0.33, 0.34 to 0.66
    assert average_precision(found, np.array([0, 3])) == pytest.approx(expected)


def test_the_second_on_one_object_is_wrong():
    found = rows([1, 1], [0.8, 0.9], [[1], [0.95]], [1])
    assert found[0, 1] == 0.9  # best first
    assert found[0, 2:12].all()
    assert not found[1, 2:].any()  # neither a hit nor left uncounted
    assert average_precision(found, np.array([0, 1])) == pytest.approx(1)  # all recall is reached before it


def test_crowds_take_any_number_and_count_for_nothing():
    found = rows([1, 1, 1], [0.9, 0.8, 0.7], [[0, 0.99], [0, 0.99], [1, 0.99]], [1, 1], [False, True])
    assert found[:2, 12:].all()
    assert found[2, 2:12].all()  # an object comes before a crowd
    assert average_precision(found, np.array([0, 1])) == pytest.approx(1)


def test_categories_are_averaged_and_those_without_objects_left_out():
    found = rows([1, 3], [0.9, 0.9], [[1, 0], [0, 0]], [1, 2])
    assert average_precision(found, np.array([0, 1, 1, 0])) == pytest.approx(0.5)
    assert average_precision(found, np.array([0, 0, 0, 0])) is None
    assert average_precision(np.zeros((0, 22)), np.array([0, 1])) == 0


def test_at_most_a_hundred():
    overlaps = np.zeros((101, 1))
    overlaps[100] = 1
    assert average_precision(rows([1] * 101, np.linspace(1, 0.5, 101), overlaps, [1]), np.array([0, 1])) == 0


def test_pixels_are_counted_exactly_under_autocast():
    masks = torch.zeros(1, 20_000)
    masks[:, :10_007] = 1
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert float(mask_overlaps(masks, masks, torch.tensor([False]))) == 1


def test_overlaps_of_boxes_and_masks_agree():
    boxes = torch.tensor([[0.0, 0, 4, 4], [2, 2, 6, 8], [0, 0, 1, 1]])
    crowd = torch.tensor([False, True, False])
    masks = torch.zeros(3, 8, 8)
    for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist(), strict=True):
        mask[top:bottom, left:right] = 1
    of_boxes = box_overlaps(boxes, boxes, crowd)
    assert torch.allclose(of_boxes, mask_overlaps(masks.flatten(1), masks.flatten(1), crowd))
    assert of_boxes[0].tolist() == pytest.approx([1, 4 / 16, 1 / 16])  # the second is a crowd: over the first's area
    assert of_boxes[1, 0] == pytest.approx(4 / (16 + 24 - 4))


class Knowing(torch.nn.Module):
    """A detector that finds what it is told to, moved to the right by some pixels; its loss is 2."""

    def __init__(self, targets, moved=0):
        super().__init__()
        self.told, self.moved = list(targets), moved

    def forward(self, images, targets=None):
        if self.training:
            assert not any(target["crowd"].any() for target in targets)
            return {"a": torch.tensor(0.5), "b": torch.tensor(1.5)}
        told, self.told = self.told[: len(images)], self.told[len(images) :]
        shift = torch.tensor([self.moved, 0, self.moved, 0])
        return [
            {
                "boxes": t["boxes"] + shift,
                "labels": t["labels"],
                "scores": torch.ones(len(t["labels"])),
                "masks": t["masks"].roll(self.moved, -1)[:, None].float(),
            }
            for t in told
        ]


@pytest.mark.parametrize(("moved", "expected"), [(0, 1.0), (3, 0.5), (40, 0.0)])
def test_a_detector_is_evaluated(moved, expected, tmp_path):
    task = data.load("coco", write_coco(tmp_path, side=96), workers=0, masks=True)
    _, targets = next(task.eval_batches(4))
    before = torch.get_rng_state()
    model = Knowing(targets, moved).eval()
    found = evaluate(model, task, 3, Ranks(0, 1, torch.device("cpu")))
    assert not model.training and torch.equal(torch.get_rng_state(), before)
    assert found["loss"] == pytest.approx(2)
    # Boxes 20 wide: moved by 3 they overlap by 17 / 23 = 0.74, which is enough for five of ten thresholds.
    assert found["box_ap"] == pytest.approx(expected) and found["mask_ap"] == pytest.approx(expected)
