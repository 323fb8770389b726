"""EfficientNet-Lite0 on Fashion-MNIST, for experiments/pretrained.py, with recipes/pretrained-efficientnet.yaml."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import nmlearn as nm
from nmlearn.lab import data
from nmlearn.lab.data import fashion
from nmlearn.lab.data.arrays import ArrayImages, Labelled
from nmlearn.lab.data.options import ImageOptions, parse
from nmlearn.lab.train import MethodConfig, TrainConfig, recipe, train
from nmlearn.lab.train.batch_norm import reestimate
from nmlearn.lab.train.evaluation import evaluate
from nmlearn.lab.train.folder import RunFolder, save_model
from nmlearn.lab.train.ranks import Ranks
from nmlearn.lab.train.setting import build_model, load_task

if TYPE_CHECKING:
    from pretrained import Arm

RECIPE = Path(__file__).parents[1] / "recipes" / "pretrained-efficientnet.yaml"
HELD_OUT = 10_000  # the last training images, for tuning
REESTIMATED = 1000  # training images to re-estimate batch norm statistics after the one-shot mask


def fine_tuning(sizes: dict[str, int], lbc: dict[str, Any], held_out: bool) -> Vision:
    """The recipe with other sizes (train, test, epochs) and options of LBC."""
    config = recipe.build(TrainConfig, recipe.load(RECIPE))
    limits = {"train_limit": sizes.get("train"), "eval_limit": sizes.get("test")}
    name = "fashion-mnist-held-out" if held_out else config.data.name
    data.DATASETS["fashion-mnist-held-out"] = held_out_images
    source = replace(config.data, name=name, options={**config.data.options, **limits})
    method = replace(config.method, options={**config.method.options, **lbc})
    config = replace(config, data=source, method=method, epochs=sizes.get("epochs", config.epochs), threads=1)
    return Vision(replace(config, log_every=sizes.get("log_every", config.log_every)))


class Vision:
    """Trains with a recipe; one-shot masks the dense arm's weights."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.recipe = recipe.to_dict(config) | {"oneshot": {"batch_norm_examples": REESTIMATED}}

    def run(self, arm: Arm, folder: Path, dense: Path) -> dict[str, Any]:
        if arm.method == "oneshot":
            return self._one_shot(arm, folder, dense)
        config = self._config(arm, folder)
        if arm.from_dense:
            weights = str(RunFolder(dense).model)
            config = replace(config, model=replace(config.model, weights=weights))
        found = train(config)
        return {key: found[key] for key in ("accuracy", "loss", "seconds", "density", "training_flops_ratio")}

    def _config(self, arm: Arm, folder: Path) -> TrainConfig:
        own = self.config.method.options if arm.learns_by == "lbc" else {}
        method = MethodConfig(arm.learns_by, arm.pattern or "2:4", self.config.method.rules, own)
        return replace(self.config, method=method, seed=arm.seed, out=str(folder))

    def _one_shot(self, arm: Arm, folder: Path, dense: Path) -> dict[str, Any]:
        config, alone = self._config(arm, folder), Ranks(0, 1, torch.device("cpu"))
        task = load_task(config.data)
        model = build_model(replace(config.model, weights=str(RunFolder(dense).model)), task)
        model = model.to(memory_format=torch.channels_last)
        begun = time.perf_counter()
        sparsifier = nm.Sparsifier(model, nm.OneShot(arm.pattern)).attach(torch.optim.SGD(model.parameters()), 1)
        sparsifier.finalize()
        before = evaluate(model, task, config, alone)["accuracy"]
        reestimate(model, task, config, alone, REESTIMATED)
        seconds = time.perf_counter() - begun
        save_model(RunFolder(folder).model, model, {row.name: arm.pattern for row in sparsifier.plan.sparse})
        found = evaluate(model, task, config, alone)
        return {"accuracy": found["accuracy"], "loss": found["loss"], "seconds": seconds} | {"old_batch_norm": before}


def held_out_images(path: Path | None = None, **options: object) -> data.Task:
    """Fashion-MNIST's training images only, the last 10,000 for evaluation: tuning sees no test image."""
    folder = path or fashion.DEBIAN_FOLDER
    images, labels = (fashion.read_idx(folder / f"train-{part}-ubyte.gz") for part in ("images-idx3", "labels-idx1"))
    whole = fashion.labelled(images, labels)
    parts = (
        Labelled(whole.images[:-HELD_OUT], whole.labels[:-HELD_OUT]),
        Labelled(whole.images[-HELD_OUT:], whole.labels[-HELD_OUT:]),
    )
    read = parse(ImageOptions, options)
    told = {"classes": 10, "mean": fashion.MEAN, "std": fashion.STD, "source": str(folder), "options": read}
    return ArrayImages("fashion-mnist-held-out", *parts, **told)  # type: ignore[arg-type]
