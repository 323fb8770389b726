"""Residual networks (He et al. 2016, "Deep Residual Learning for Image Recognition").

Two families from one module: the CIFAR family of section 4.2 (3 x 3 stem, three stages of width, 2 width and 4 width)
and the ImageNet family of table 1 (7 x 7 stem and pooling, four stages). Where the shape changes, the shortcut
is a 1 x 1 convolution with batch norm (option B of section 3.3) in both: option A's zero-padded copy has no weights
that could be sparse. The bottleneck has its stride in the 3 x 3 convolution ("v1.5"), and the state_dict has the same
names, as in torchvision.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from nmlearn.errors import ConfigError


def conv(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Conv2d:
    """A convolution without bias (batch norm follows) that keeps height and width at stride 1."""
    return nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)


def shortcut(inputs: int, outputs: int, stride: int) -> nn.Module | None:
    """Option B where the shape changes, else None for the identity."""
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv(inputs, width, 3, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = shortcut(inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """[b, inputs, H, W] -> [b, width, H / stride, W / stride]."""
        y = functional.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return functional.relu(y + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 and 1 x 1 convolutions and a shortcut; four times as many outputs as inner channels."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv(inputs, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = conv(width, 4 * width, 1)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.downsample = shortcut(inputs, 4 * width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """[b, inputs, H, W] -> [b, 4 width, H / stride, W / stride]."""
        y = functional.relu(self.bn1(self.conv1(x)))
        y = functional.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return functional.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """Stem, stages (`layer1`, `layer2` ...), global average and classifier (`fc`).

    Args:
        block: `BasicBlock` or `Bottleneck`.
        depths: blocks of each stage; each stage after the first halves the height and doubles the width.
        width: inner channels of the first stage.
        channels: of the input; any height and width is accepted.
        stem: "imagenet" (7 x 7, stride 2, and pooling: a quarter of the height) or "cifar" (3 x 3, full height).
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: Sequence[int],
        *,
        width: int,
        channels: int,
        classes: int,
        stem: str,
    ) -> None:
        super().__init__()
        if stem not in ("imagenet", "cifar"):
            raise ConfigError(
                where="model.options.stem", given=repr(stem), wrong="no such stem", fix="use imagenet or cifar"
            )
        large = stem == "imagenet"
        self.conv1 = conv(channels, width, 7, 2) if large else conv(channels, width, 3)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1) if large else nn.Identity()
        inputs = width
        self.stages = [f"layer{number}" for number in range(1, len(depths) + 1)]
        for number, (name, depth) in enumerate(zip(self.stages, depths, strict=True)):
            inner, blocks = width * 2**number, []
            for place in range(depth):
                blocks.append(block(inputs, inner, 2 if number and not place else 1))
                inputs = inner * block.expansion
            self.add_module(name, nn.Sequential(*blocks))
        self.fc = nn.Linear(inputs, classes)
        self.apply(_initialise)

    def forward(self, x: Tensor) -> Tensor:
        """float32 [b, channels, H, W] -> logits [b, classes]."""
        x = self.maxpool(functional.relu(self.bn1(self.conv1(x))))
        for name in self.stages:
            x = self.get_submodule(name)(x)
        return self.fc(torch.flatten(functional.adaptive_avg_pool2d(x, 1), 1))


def _initialise(module: nn.Module) -> None:
    """He et al. 2015 for layers followed by batch norm; torch's default for the classifier."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def _cifar(depth: int, classes: int, input_shape: tuple[int, ...], width: int) -> ResNet:
    depths = [(depth - 2) // 6] * 3
    return ResNet(BasicBlock, depths, width=width, channels=input_shape[0], classes=classes, stem="cifar")


def resnet8(classes: int, input_shape: tuple[int, ...], *, width: int = 16) -> ResNet:
    """The CIFAR family with one block per stage."""
    return _cifar(8, classes, input_shape, width)


def resnet20(classes: int, input_shape: tuple[int, ...], *, width: int = 16) -> ResNet:
    """The CIFAR family with three blocks per stage."""
    return _cifar(20, classes, input_shape, width)


def resnet32(classes: int, input_shape: tuple[int, ...], *, width: int = 16) -> ResNet:
    """The CIFAR family with five blocks per stage."""
    return _cifar(32, classes, input_shape, width)


def resnet18(classes: int, input_shape: tuple[int, ...], *, width: int = 64, stem: str = "imagenet") -> ResNet:
    """The ImageNet family with basic blocks 2-2-2-2; stem="cifar" for images of 32 pixels."""
    return ResNet(BasicBlock, (2, 2, 2, 2), width=width, channels=input_shape[0], classes=classes, stem=stem)


def resnet50(classes: int, input_shape: tuple[int, ...], *, width: int = 64, stem: str = "imagenet") -> ResNet:
    """The ImageNet family with bottlenecks 3-4-6-3; stem="cifar" for images of 32 pixels."""
    return ResNet(Bottleneck, (3, 4, 6, 3), width=width, channels=input_shape[0], classes=classes, stem=stem)
