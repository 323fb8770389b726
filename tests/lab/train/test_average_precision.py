"""COCO's average precision, against numbers worked out by hand, and detectors evaluated by it."""

from __future__ import annotations

import pytest
import torch

from nmlearn.lab import data
from nmlearn.lab.train.average_precision import average_precision, rows
from nmlearn.lab.train.detection import evaluate
from nmlearn.lab.train.ranks import Ranks
from small_detection import write_coco

Box = tuple[float, float]
"""Left and right in pixels, of a box one pixel high."""


def boxes(places: list[Box], labels: list[int] | None = None, **more: list[float]) -> dict[str, torch.Tensor]:
    corners = torch.tensor([[left, 0, right, 1] for left, right in places]).float().view(-1, 4)
    named = {key: torch.tensor(value) for key, value in more.items()}
    return {"boxes": corners, "labels": torch.tensor(labels or [1] * len(places)), **named}


def score(objects: dict[str, torch.Tensor], found: dict[str, torch.Tensor]) -> float | None:
    return average_precision(rows(0, objects), rows(0, found), "bbox")


def test_all_found():
    objects = boxes([(0, 10), (20, 30)], [1, 2])
    assert score(objects, {**objects, "scores": torch.tensor([0.9, 0.8])}) == pytest.approx(1)


@pytest.mark.parametrize(
    ("overlap", "thresholds"), [(49, 0), (50, 1), (65, 4), (70, 5), (72, 5), (75, 6), (90, 9), (95, 10)]
)
def test_overlap_decides_how_many_thresholds_count(overlap, thresholds):
    found = boxes([(0, overlap)], scores=[0.9])
    assert score(boxes([(0, 100)]), found) == pytest.approx(thresholds / 10)


def test_order_and_misses():
    # A wrong one between two right ones, two of three objects: precision 1 up to recall 1/3, 2/3 up to 2/3, then 0.
    found = boxes([(0, 10), (50, 60), (20, 30)], scores=[0.9, 0.8, 0.7])
    expected = (34 * 1 + 33 * 2 / 3) / 101  # recalls 0 to 0.33, 0.34 to 0.66
    assert score(boxes([(0, 10), (20, 30), (40, 49)]), found) == pytest.approx(expected)


def test_the_second_on_one_object_is_wrong():
    objects = boxes([(0, 10), (20, 30)])
    twice_first = boxes([(0, 10), (0, 10), (20, 30)], scores=[0.9, 0.8, 0.7])
    assert score(objects, twice_first) == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert score(boxes([(0, 10)]), boxes([(0, 9.5), (0, 10)], scores=[0.8, 0.9])) == pytest.approx(1)


def test_crowds_take_any_number_and_count_for_nothing():
    objects = boxes([(0, 10), (0, 100)], crowd=[False, True])
    found = boxes([(50, 60), (70, 80), (0, 10)], scores=[0.9, 0.8, 0.7])
    assert score(objects, found) == pytest.approx(1)
    assert score(boxes([(0, 10)]), found) == pytest.approx(1 / 3)  # without the crowd two are wrong


def test_categories_are_averaged_and_those_without_objects_left_out():
    objects = boxes([(0, 10), (20, 30)], [1, 2])
    found = boxes([(0, 10), (20, 30)], [1, 3], scores=[0.9, 0.9])
    assert score(objects, found) == pytest.approx(0.5)
    nothing = boxes([], [])
    assert score(nothing, found) is None and score(nothing, nothing) is None
    assert score(boxes([(0, 10)], crowd=[True]), found) is None
    assert score(objects, boxes([], [], scores=[])) == 0


def test_at_most_a_hundred():
    objects, wrong = boxes([(0, 10)]), [(20.0, 30.0)] * 100
    scores = torch.linspace(1, 0.5, 101).tolist()
    assert score(objects, boxes([*wrong, (0, 10)], scores=scores)) == 0
    assert score(objects, boxes([*wrong[1:], (0, 10)], scores=scores[1:])) == pytest.approx(0.01)


def test_what_is_wrong_in_one_image_counts_in_all():
    objects, right = boxes([(0, 10)]), boxes([(0, 10)], scores=[0.8])
    wrong = rows(7, boxes([(0, 10)], scores=[0.9]))  # an image without objects
    assert average_precision(rows(0, objects), [*wrong, *rows(0, right)], "bbox") == pytest.approx(0.5)


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
