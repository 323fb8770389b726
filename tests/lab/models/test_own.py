"""Our own networks: shapes, published parameter counts, names, and what each promises."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from nmlearn.errors import ConfigError
from nmlearn.lab import models
from nmlearn.lab.models.resnet import ResNet
from nmlearn.lab.models.transformer import DropPath

IMAGES = [name for name in models.MODELS if models.OTHER_KINDS.get(name, "image") == "image"]


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def example(kind: str, batch: int, shape: tuple[int, ...], classes: int) -> Tensor:
    return torch.randn(batch, *shape) if kind == "image" else torch.randint(1, classes, (batch, *shape))


@pytest.mark.parametrize(
    ("name", "classes", "shape", "count"),
    [
        ("resnet20", 10, (3, 32, 32), 272_474),  # option B; option A's would be 269,722
        ("resnet32", 10, (3, 32, 32), 466_906),  # option B; option A's would be 464,154
        ("resnet18", 1000, (3, 64, 64), 11_689_512),  # torchvision
        ("resnet50", 1000, (3, 64, 64), 25_557_032),  # torchvision
        ("deit-small", 1000, (3, 224, 224), 22_050_664),  # timm deit_small_patch16_224
    ],
)
def test_parameter_counts_are_the_published_ones(name: str, classes: int, shape: tuple[int, ...], count: int) -> None:
    with torch.device("meta"):
        model = models.build(name, classes=classes, input_shape=shape)
    assert parameters(model) == count


@pytest.mark.parametrize("name", models.MODELS)
def test_models_give_logits_and_all_learn(name: str) -> None:
    kind = models.OTHER_KINDS.get(name, "image")
    shape = (2, 32, 32) if kind == "image" else (12,)
    classes = 17
    model = models.build(name, classes=classes, input_shape=shape, kind=kind)
    logits = model(example(kind, 3, shape, classes))
    assert logits.shape == ((3, 12, classes) if kind == "language" else (3, classes))
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    copied = copy.deepcopy(model).eval()
    inputs = example(kind, 3, shape, classes)
    assert torch.equal(copied(inputs), model.eval()(inputs))


@pytest.mark.parametrize("name", models.MODELS)
def test_building_follows_the_global_seed(name: str) -> None:
    kind = models.OTHER_KINDS.get(name, "image")
    shape = (1, 32, 32) if kind == "image" else (8,)
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(models.build(name, classes=4, input_shape=shape, kind=kind).state_dict())
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 33, 47)])
def test_resnets_take_any_image(shape: tuple[int, int, int]) -> None:
    for name in ("resnet8", "resnet18"):
        assert models.build(name, classes=5, input_shape=shape, width=8)(torch.randn(2, *shape)).shape == (2, 5)


def test_resnet_stems_and_strides() -> None:
    sizes = {}
    for name, stem in (("resnet8", None), ("resnet18", "cifar"), ("resnet50", "imagenet")):
        model = models.build(name, classes=5, input_shape=(3, 64, 64), width=8, stem=stem)
        assert isinstance(model, ResNet)
        seen: list[tuple[int, ...]] = []
        for stage in model.stages:
            model.get_submodule(stage).register_forward_hook(lambda _m, _a, out, seen=seen: seen.append(out.shape[1:]))
        model(torch.randn(2, 3, 64, 64))
        sizes[name] = seen
    assert sizes["resnet8"] == [(8, 64, 64), (16, 32, 32), (32, 16, 16)]
    assert sizes["resnet18"] == [(8, 64, 64), (16, 32, 32), (32, 16, 16), (64, 8, 8)]
    assert sizes["resnet50"] == [(32, 16, 16), (64, 8, 8), (128, 4, 4), (256, 2, 2)]
    assert model.get_submodule("layer2.0.conv2").stride == (2, 2)  # v1.5: not in the 1 x 1


def test_names_are_those_of_torchvision_and_timm() -> None:
    with torch.device("meta"):
        resnet = models.build("resnet50", classes=10, input_shape=(3, 64, 64)).state_dict()
        deit = models.build("deit-small", classes=10, input_shape=(3, 224, 224)).state_dict()
    assert {"conv1.weight", "bn1.running_var", "layer3.5.conv3.weight", "layer4.0.downsample.1.bias"} <= set(resnet)
    block = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    layers = {f"blocks.{number}.{layer}" for number in range(12) for layer in block}
    layers |= {"patch_embed.proj", "norm", "head"}
    named = {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}
    assert set(deit) == named | {"cls_token", "pos_embed"}


@pytest.mark.parametrize(("size", "patch"), [(28, 7), (32, 4), (64, 8), (16, 2)])
def test_vit_chooses_its_patch(size: int, patch: int) -> None:
    model = models.build("vit", classes=10, input_shape=(1, size, size))
    assert model.get_submodule("patch_embed.proj").kernel_size == (patch, patch)


def test_gpt_does_not_look_ahead() -> None:
    model = models.build("gpt", classes=30, input_shape=(10,), kind="language").eval()
    tokens = torch.randint(0, 30, (2, 10))
    changed = tokens.clone()
    changed[:, 6:] = (changed[:, 6:] + 1) % 30
    first, second = model(tokens), model(changed)
    assert torch.allclose(first[:, :6], second[:, :6], atol=1e-6)
    assert not torch.allclose(first[:, 6:], second[:, 6:])
    assert model(tokens[:, :4]).shape == (2, 4, 30)
    with pytest.raises(ConfigError, match="more tokens than positions"):
        model(torch.zeros(1, 11, dtype=torch.int64))


def test_gpt_ties_its_head_when_asked() -> None:
    free, tied = (
        models.build("gpt", classes=30, input_shape=(10,), kind="language", tied=tied) for tied in (False, True)
    )
    assert parameters(free) - parameters(tied) == 30 * 128
    assert tied.get_parameter("head.weight") is tied.get_parameter("tok_embed.weight")


def test_text_transformer_ignores_padding() -> None:
    model = models.build("text-transformer", classes=5, input_shape=(12,), kind="text", vocabulary=40).eval()
    tokens = torch.randint(1, 40, (3, 7))
    padded = torch.nn.functional.pad(tokens, (0, 5))
    assert torch.allclose(model(tokens), model(padded), atol=1e-5)
    assert model(torch.zeros(2, 12, dtype=torch.int64)).isfinite().all()


def test_drop_path_keeps_the_expectation() -> None:
    layer, x = DropPath(0.25), torch.ones(4000, 2)
    dropped = layer(x)
    assert dropped.unique().tolist() == pytest.approx([0, 4 / 3])
    assert dropped.mean().item() == pytest.approx(1, abs=0.05)
    assert torch.equal(dropped[:, 0], dropped[:, 1])
    assert torch.equal(layer.eval()(x), x)


def test_none_means_the_default() -> None:
    model = models.build("resnet8", classes=10, input_shape=(1, 28, 28), width=None)
    assert parameters(model) == parameters(models.build("resnet8", classes=10, input_shape=(1, 28, 28)))


@pytest.mark.parametrize(
    ("name", "kind", "options", "said"),
    [
        ("resnet-20", "image", {}, "did you mean 'resnet20'"),
        ("nothing:else", "image", {}, "known: resnet8"),
        ("resnet20", "image", {"widht": 3}, "did you mean 'width'"),
        ("resnet20", "text", {}, "text-transformer"),
        ("gpt", "image", {}, "resnet8"),
        ("resnet18", "image", {"stem": "small"}, "imagenet or cifar"),
        ("vit", "image", {"patch": 5}, "does not divide"),
        ("vit", "image", {"heads": 5}, "does not divide the dim 192"),
    ],
)
def test_errors_have_four_parts(name: str, kind: str, options: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        models.build(name, classes=10, input_shape=(3, 32, 32), kind=kind, **options)
    error = caught.value
    assert error.where.startswith("model.") and error.given and error.wrong and error.fix
    assert said in f"{error.wrong} {error.fix}"


@pytest.mark.parametrize("name", models.MODELS)
def test_models_trace_as_one_graph(name: str) -> None:
    """What torch.compile and export need: no Python that depends on values."""
    kind = models.OTHER_KINDS.get(name, "image")
    shape = (3, 32, 32) if kind == "image" else (12,)
    model = models.build(name, classes=10, input_shape=shape, kind=kind).eval()
    inputs = example(kind, 2, shape, 10)
    with torch.no_grad():
        assert torch.allclose(torch.export.export(model, (inputs,)).module()(inputs), model(inputs), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "options", "where"),
    [
        ("resnet8", {"width": "abc"}, "model.options.width"),
        ("resnet8", {"width": 0}, "model.options.width"),
        ("resnet8", {"width": True}, "model.options.width"),
        ("resnet18", {"stem": 3}, "model.options.stem"),
        ("resnet18", {"stem": "large"}, "model.options.stem"),
        ("vit", {"drop_path": "much"}, "model.options.drop_path"),
        ("vit", {"patch": 5}, "model.options.patch"),
        ("vit", {"heads": 7}, "model.options.heads"),
        ("resnet8", {"widht": 3}, "model.options.widht"),
    ],
)
def test_options_that_make_no_network_are_named(name: str, options: dict[str, object], where: str) -> None:
    with pytest.raises(ConfigError) as caught:
        models.build(name, classes=3, input_shape=(3, 32, 32), **options)
    assert caught.value.where == where


def test_what_a_builder_refuses_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(classes: int, input_shape: tuple[int, ...], *, size: int = 1) -> nn.Module:
        return nn.Linear(-size, 1)

    monkeypatch.setitem(models.MODELS, "refusing", refuse)
    with pytest.raises(ConfigError, match="no network can be built") as caught:
        models.build("refusing", classes=3, input_shape=(3, 32, 32), size=4)
    assert caught.value.where == "model.options"
