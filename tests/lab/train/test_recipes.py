"""Every recipe for data that nmlearn cannot include is run from its command line, on a few images in the real layout.

The networks are the recipes' own, on small images and few classes. torchvision's detectors need operators that the
usual build lacks next to a CPU build of torch: then `small_detection.provide_operators` supplies them.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from nmlearn import cli
from nmlearn.errors import ConfigError
from nmlearn.lab import models
from nmlearn.lab.data.cifar import CIFAR10
from nmlearn.lab.models import external
from places import ROOT
from small_cifar import unpacked
from small_data import write_images
from small_detection import provide_operators, write_coco

FEW = ["--epochs", "2", "--data.options.workers", "0", "--compile", "false", "--precision", "fp32", "--device", "cpu"]


def trained(recipe: str, data: Path, out: Path, *words: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The summary and the saved weights of a run of a recipe."""
    config = ["--config", str(ROOT / "recipes" / f"{recipe}.yaml"), "--data.path", str(data), "--out", str(out)]
    assert cli.main(["train", *config, *words]) == 0
    weights = load_file(out / "model" / "model.safetensors")
    return json.loads((out / "summary.json").read_text()), weights


def sparse(weight: torch.Tensor, n: int, m: int) -> bool:
    """Whether every group along the inputs has at most n non-zeros of m, and nearly all have n: some weight hits 0."""
    kept = (weight.movedim(1, -1).unflatten(-1, (-1, m)) != 0).sum(-1)
    return bool((kept <= n).all()) and float((kept == n).float().mean()) > 0.99


def test_cifar10(tmp_path: Path) -> None:
    unpacked(CIFAR10, tmp_path)
    summary, weights = trained(
        "cifar10-resnet32-lbc", tmp_path, tmp_path / "run", "--epochs", "2", "--batch_size", "20", "--device", "cpu",
        "--data.options.train_limit", "40", "--data.options.eval_limit", "20", "--pattern", "1:4",
    )  # fmt: skip
    assert summary["pattern"] == "1:4"
    assert summary["density"] == pytest.approx(0.25, rel=1e-4)
    assert sparse(weights["layer1.0.conv1.weight"], 1, 4)
    assert weights["conv1.weight"].count_nonzero() == weights["conv1.weight"].numel()


R50 = [pytest.param("imagenet-resnet50-lbc", p, marks=pytest.mark.slow) for p in ("2:4", "4:8", "1:4", "2:8", "1:16")]


@pytest.mark.parametrize(("recipe", "pattern"), [("imagenet-resnet18-lbc", "2:4"), *R50])
def test_imagenet_resnets(recipe: str, pattern: str, tmp_path: Path) -> None:
    small = ["--batch_size", "4", "--data.options.image_size", "32", "--pattern", pattern]
    summary, weights = trained(recipe, write_images(tmp_path / "data"), tmp_path / "run", *FEW, *small)
    n, m = map(int, pattern.split(":"))
    assert summary["density"] == pytest.approx(n / m, rel=1e-4)
    assert sparse(weights["layer4.0.downsample.0.weight"], n, m)  # the shortcuts too
    for dense in ("conv1.weight", "fc.weight"):
        assert weights[dense].count_nonzero() == weights[dense].numel()


@pytest.mark.slow
def test_imagenet_deit(tmp_path: Path) -> None:
    small = ["--batch_size", "4", "--data.options.image_size", "32"]
    data = write_images(tmp_path / "data")
    summary, weights = trained("imagenet-deit-small-lbc", data, tmp_path / "run", *FEW, *small)
    assert summary["density"] == pytest.approx(0.5, rel=1e-4)
    assert summary["ema_accuracy"] is not None
    average = load_file(tmp_path / "run" / "model" / "average.safetensors")
    for part in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"):
        name = f"blocks.11.{part}.weight"
        assert sparse(weights[name], 2, 4)
        # The average is 2:4 too; where a weight has hardly moved off zero it may be zero.
        assert bool(((average[name].unflatten(-1, (-1, 4)) != 0).sum(-1) <= 2).all())
    for dense in ("patch_embed.proj.weight", "head.weight"):
        assert weights[dense].count_nonzero() == weights[dense].numel()


DETECTORS = [("coco-faster-rcnn-r50-lbc", "2:4"), ("coco-mask-rcnn-r50-lbc", "2:8")]


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "pattern"), DETECTORS)
def test_coco(recipe: str, pattern: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    provide_operators(monkeypatch, torchvision())
    classifier = normed_classifier()
    save_file(classifier, tmp_path / "classifier.safetensors")
    small = {"min_size": 64, "max_size": 96, "rpn_post_nms_top_n_train": 50, "rpn_pre_nms_top_n_train": 100}
    small |= {"rpn_post_nms_top_n_test": 20, "rpn_pre_nms_top_n_test": 50, "box_batch_size_per_image": 16}
    words = [word for key, value in small.items() for word in (f"--model.options.{key}", str(value))]
    words += ["--model.backbone", str(tmp_path / "classifier.safetensors"), "--data.options.train_limit", "3"]
    words += ["--batch_size", "1", "--eval_batch_size", "2", "--pattern", pattern]
    words += ["--optim.lr", "1e-4", "--optim.milestones", "[1]"]
    summary, weights = trained(recipe, write_coco(tmp_path / "data"), tmp_path / "run", *FEW, *words)
    n, m = map(int, pattern.split(":"))
    assert summary["density"] == pytest.approx(n / m, rel=1e-4)
    assert sparse(weights["backbone.body.layer1.0.conv1.weight"], n, m)
    assert sparse(weights["backbone.body.layer4.0.downsample.0.weight"], n, m)
    for dense in (
        "backbone.body.conv1",
        "backbone.fpn.layer_blocks.0.0",
        "rpn.head.conv.0.0",
        "roi_heads.box_head.fc6",
    ):
        assert weights[f"{dense}.weight"].count_nonzero() > 0.99 * weights[f"{dense}.weight"].numel()
    assert torch.equal(weights["backbone.body.layer2.0.bn1.running_mean"], classifier["layer2.0.bn1.running_mean"])
    assert 0 <= summary["box_ap"] <= 1
    assert (summary["mask_ap"] is not None) == ("mask" in recipe)
    assert np.isfinite(summary["loss"])
    assert "Box AP" in (tmp_path / "run" / "report.html").read_text()


def normed_classifier() -> dict[str, torch.Tensor]:
    """The state of a ResNet-50 whose norms only shrink: frozen ones do not make up for removed random weights."""
    state = models.build("resnet50", classes=5, input_shape=(3, 64, 64)).state_dict()
    for name in state:
        if name.endswith("running_var"):
            state[name].fill_(64.0)
    return state


def torchvision() -> Any:
    try:
        return external.imported("torchvision")
    except ConfigError as error:
        pytest.skip(f"needs the optional package torchvision: {error.wrong}")


def test_a_detector_says_what_it_needs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torchvision()
    for name in ("resnet50", "timm:resnet18", "transformers:folder"):
        with pytest.raises(ConfigError, match="use for instance torchvision:fasterrcnn"):
            models.build(name, classes=5, input_shape=(3, 64, 64), kind="detection")
    recipe, folder = ROOT / "recipes" / "coco-faster-rcnn-r50-lbc.yaml", write_coco(tmp_path / "coco")
    words = ["--data.path", str(folder), "--precision", "bf16", "--device", "cpu", "--out", str(tmp_path / "run")]
    assert cli.main(["train", "--config", str(recipe), *words]) == 2
    assert "8 bits" in "".join(capsys.readouterr())
    with pytest.raises(ConfigError, match="takes detection data"):
        models.build("torchvision:fasterrcnn_resnet50_fpn", classes=5, input_shape=(3, 64, 64))
    with pytest.raises(ConfigError, match="takes image data"):
        models.build("torchvision:resnet18", classes=5, input_shape=(3, 64, 64), kind="detection")
    with pytest.raises(ConfigError, match="it has no backbone"):
        external.load_backbone(torch.nn.Linear(2, 2), {})
    shutil.rmtree(tmp_path)
