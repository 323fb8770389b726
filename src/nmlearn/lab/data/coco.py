"""Object detection in COCO's layout: annotations/instances_NAME.json, with its images in NAME/.

    inputs   a list of float32 [3, H, W] in [0, 1], each of its own size
    targets  a list of dicts: boxes float32 [n, 4] as x0, y0, x1, y1 in pixels; labels int64 [n] from 1 (0 is the
             background); crowd bool [n]; with the option masks: masks uint8 [n, H, W]

which is the input of torchvision's detection models. As in their reference training, training omits crowds and images
without objects; evaluation includes all of them.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from nmlearn.errors import DataError
from nmlearn.lab.data import outlines
from nmlearn.lab.data.options import Limits, parse, require
from nmlearn.lab.data.pipeline import Broken, Key, Pipeline, image_root, needs, processes
from nmlearn.lab.data.task import Batch, Draw, Task

LAYOUT = (
    "set data.path to a folder with annotations/instances_train2017.json, instances_val2017.json, train2017/, val2017/"
)
Target = dict[str, Tensor]


@dataclass(frozen=True)
class CocoOptions(Limits):
    """Options of "coco".

    Attributes:
        train, val: names of the two parts, i.e. of the image folder and in the annotation file's name.
        masks: read the instances' masks, for Mask R-CNN.
        flip: mirror half of the training images horizontally.
        workers: decoding processes (None: this process's share of the usable cores, at most 16; 0: decode in the
            training process).
    """

    train: str = "train2017"
    val: str = "val2017"
    masks: bool = False
    flip: bool = True
    workers: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.workers is None or self.workers >= 0, "workers", self.workers, "negative", "use 0 or more")


class Instance(NamedTuple):
    """One object: its class from 1, its box as x0, y0, x1, y1, whether it is a crowd, and its mask as COCO's JSON."""

    label: int
    box: tuple[float, float, float, float]
    crowd: bool
    segmentation: bytes  # one object instead of hundreds of numbers: every worker process holds all instances


class LabelledImage(NamedTuple):
    """One image file and its objects."""

    file: Path
    instances: list[Instance]


class Annotated(Dataset[tuple[Tensor, Target] | Broken]):
    """uint8 images [3, H, W] and their targets by Key; lives in the worker processes."""

    def __init__(self, parts: dict[str, list[LabelledImage]], options: CocoOptions) -> None:
        self.parts, self.options = parts, options

    def __getitem__(self, key: Key) -> tuple[Tensor, Target] | Broken:
        example = self.parts[key.part][key.number]
        try:
            image, target = _read(example)
        except (OSError, ValueError, SyntaxError) as error:  # Pillow raises these on damaged files
            return Broken(example.file, str(error))
        if self.options.masks:
            try:
                target["masks"] = _masks(example, *image.shape[1:])
            except (ValueError, TypeError) as error:
                return Broken(example.file, str(error), "has an invalid segmentation", "correct the annotation file")
        mirrored = key.seeds and self.options.flip and np.random.default_rng((*key.seeds, key.number)).random() < 0.5
        return flip(image, target) if mirrored else (image, target)


class Coco(Task):
    """A detection task that reads files on the fly."""

    name, kind = "coco", "detection"
    input_shape = (3, 800, 800)  # nominal: image sizes vary

    def __init__(self, root: Path, options: CocoOptions) -> None:
        self.source, self.options = str(root), options
        train, categories = read_annotations(root, options.train, options.masks)
        evaluation, others = read_annotations(root, options.val, options.masks)
        if others != categories:
            file = annotation_file(root, options.val)
            wrong = f"its categories differ from those of {options.train}"
            raise DataError(where="data.path", given=file, wrong=wrong, fix=LAYOUT)
        self.categories, self.classes = categories, len(categories) + 1
        train = [example for example in (_without_crowds(each) for each in train) if example.instances]
        train, evaluation = train[: options.train_limit], evaluation[: options.eval_limit]
        self.train_size, self.eval_size = len(train), len(evaluation)
        examples = Annotated({"train": train, "val": evaluation}, options)
        self._pipeline = Pipeline(examples, collate, processes(options.workers))

    def read_train(self, draws: Sequence[Draw], *, seed: int, epoch: int) -> Iterator[Batch]:
        return self._read([[Key("train", number, (seed, epoch)) for number in draw.indices.tolist()] for draw in draws])

    def read_eval(self, parts: Sequence[Tensor]) -> Iterator[Batch]:
        return self._read([[Key("val", number) for number in part.tolist()] for part in parts])

    def _read(self, keys: Sequence[list[Key]]) -> Iterator[Batch]:
        for images, targets in self._pipeline.batches(keys):
            inputs = [image.to(self.device, non_blocking=True).float().div_(255) for image in images]
            yield inputs, [{k: v.to(self.device, non_blocking=True) for k, v in each.items()} for each in targets]


def coco(path: Path | None = None, **options: object) -> Task:
    """The detection data set in the folder `path`.

    Raises:
        ConfigError: an option is wrong, or Pillow or pycocotools is missing.
        DataError: a file is missing or not an annotation file; while iterating: a file is not an image.
    """
    settings = parse(CocoOptions, options)
    needs("coco", "pycocotools.cocoeval", "pycocotools", "pip install 'nmlearn[detection]'")
    return Coco(image_root(path, "coco", LAYOUT), settings)


def annotation_file(root: Path, part: str) -> Path:
    """The annotation file of a part."""
    return root / "annotations" / f"instances_{part}.json"


def read_annotations(root: Path, part: str, masks: bool) -> tuple[list[LabelledImage], list[str]]:
    """The images of a part by their id, with their objects, and the names of the categories.

    Category ids, which have gaps, become consecutive labels from 1. Boxes are clipped to the image; those without area
    are dropped.

    Raises:
        DataError: the file is missing or not a COCO annotation file.
    """
    file = annotation_file(root, part)
    try:
        found = json.loads(file.read_bytes())
        categories = sorted(found["categories"], key=lambda each: each["id"])
        labels = {each["id"]: label for label, each in enumerate(categories, start=1)}
        by_image: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for annotation in found["annotations"]:
            by_image[annotation["image_id"]].append(annotation)
        images = sorted(found["images"], key=lambda each: each["id"])
        examples = [
            LabelledImage(root / part / image["file_name"], _instances(image, by_image[image["id"]], labels, masks))
            for image in images
        ]
        return examples, [each["name"] for each in categories]
    except OSError as error:
        raise DataError(where="data.path", given=file, wrong=f"cannot be read ({error})", fix=LAYOUT) from error
    except (ValueError, KeyError, TypeError) as error:
        wrong = f"not a COCO annotation file ({type(error).__name__}: {error})"
        raise DataError(where="data.path", given=file, wrong=wrong, fix="unpack it again") from error


def _instances(
    image: dict[str, Any], annotations: list[dict[str, Any]], labels: dict[int, int], masks: bool
) -> list[Instance]:
    found = []
    for each in annotations:
        left, top, width, height = each["bbox"]
        right, bottom = min(left + width, image["width"]), min(top + height, image["height"])
        left, top = max(left, 0), max(top, 0)
        if right > left and bottom > top:
            label, crowd = labels[each["category_id"]], bool(each.get("iscrowd", 0))
            outline = json.dumps(each.get("segmentation")).encode() if masks else b""
            found.append(Instance(label, (left, top, right, bottom), crowd, outline))
    return found


def _without_crowds(example: LabelledImage) -> LabelledImage:
    return example._replace(instances=[each for each in example.instances if not each.crowd])


def _read(example: LabelledImage) -> tuple[Tensor, Target]:
    """The image, uint8 [3, H, W], and its targets without masks."""
    from PIL import Image

    with Image.open(example.file) as opened:
        image = torch.from_numpy(np.array(opened.convert("RGB"))).permute(2, 0, 1)
    instances = example.instances
    target = {
        "boxes": torch.tensor([each.box for each in instances], dtype=torch.float32).view(-1, 4),
        "labels": torch.tensor([each.label for each in instances], dtype=torch.int64),
        "crowd": torch.tensor([each.crowd for each in instances], dtype=torch.bool),
    }
    return image, target


def _masks(example: LabelledImage, height: int, width: int) -> Tensor:
    drawn = [outlines.mask(json.loads(each.segmentation), height, width) for each in example.instances]
    return torch.from_numpy(np.array(drawn, np.uint8).reshape(-1, height, width))


def flip(image: Tensor, target: Target) -> tuple[Tensor, Target]:
    """Both mirrored left to right."""
    target = dict(target)
    boxes = target["boxes"].clone()
    boxes[:, [0, 2]] = image.shape[-1] - boxes[:, [2, 0]]
    target["boxes"] = boxes
    if "masks" in target:
        target["masks"] = target["masks"].flip(-1)
    return image.flip(-1), target


def collate(items: list[tuple[Tensor, Target] | Broken]) -> tuple[list[Tensor], list[Target]] | Broken:
    """A list of images and a list of targets, or the first broken image."""
    images, targets = [], []
    for item in items:
        if isinstance(item, Broken):
            return item
        images.append(item[0])
        targets.append(item[1])
    return images, targets
