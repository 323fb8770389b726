"""What holds averaged weights: every kind gives the same tensors, to be written in place."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import nmlearn as nm
from nets import batches, convnet, sgd, train
from nmlearn.errors import ConfigError, PlanError
from nmlearn.model import averages

NAMES = ["conv.weight", "grouped.weight", "hidden.weight"]


class ExponentialMovingAverage(AveragedModel):
    """As torchvision's reference scripts make it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)


class ModelEmaV3(nn.Module):
    """As timm's: a module with a copy in ``module``."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.module = copy.deepcopy(model)


class Unknown(ModelEmaV3):
    pass


class Plain:
    """No module itself."""

    def __init__(self, model: nn.Module) -> None:
        self.module = copy.deepcopy(model)


class Shadows:
    """As torch_ema's: clones in the order of the parameters."""

    def __init__(self, model: nn.Module) -> None:
        self.shadow_params = [p.detach().clone() for p in model.parameters()]

    def state_dict(self) -> dict[str, Any]:
        return {"decay": 0.9, "shadow_params": self.shadow_params}


def learning_only(model: nn.Module) -> list[Tensor]:
    model.get_parameter("stem.weight").requires_grad_(False)
    return [p.detach().clone() for p in model.parameters() if p.requires_grad]


def nested(model: nn.Module) -> dict[str, Tensor]:
    return AveragedModel(model).state_dict()


KINDS: dict[str, Callable[[nn.Module], Any]] = {
    "averaged": AveragedModel,
    "subclass": ExponentialMovingAverage,
    "timm": ModelEmaV3,
    "module": Unknown,
    "object": Plain,
    "parallel": lambda model: nn.DataParallel(copy.deepcopy(model)),
    "copy": copy.deepcopy,
    "dict": lambda model: copy.deepcopy(model.state_dict()),
    "prefixed": nested,
    "shadows": Shadows,
    "shadows' state": lambda model: Shadows(model).state_dict(),
    "list": lambda model: Shadows(model).shadow_params,
    "learning": learning_only,
}


@pytest.mark.parametrize("kind", KINDS)
def test_an_average_of_any_kind_is_finished(kind: str) -> None:
    model = convnet()
    optimizer = sgd(model)
    sparsifier = nm.Sparsifier(model, nm.LBC("2:4")).attach(optimizer, 12)
    train(model, optimizer, batches(12))
    average = KINDS[kind](model)
    found = averages.weights(average, model, NAMES)
    assert list(found) == NAMES and all(found[name] is not model.get_parameter(name) for name in NAMES)
    with torch.no_grad():
        for tensor in found.values():
            tensor.fill_(2.0)
    summary = sparsifier.finalize(average)
    assert summary.density == 0.5 and summary.density_before == 1.0 and summary.removed == summary.dense_bytes // 8
    for name, tensor in averages.weights(average, model, NAMES).items():
        assert torch.equal(tensor != 0, sparsifier.masks()[name]) and tensor.max() == 2.0


@pytest.mark.parametrize(
    ("average", "said"),
    [
        (lambda model: list(model.parameters())[:-1], "not those of the model's 11 parameters"),
        (lambda model: list(model.parameters())[::-1], "not those of the model's 11 parameters"),
        (lambda model: {"stem.weight": model.stem.weight}, "it has no such weight"),
        (lambda model: {name: torch.zeros(4, 4) for name in NAMES}, r"shape \[4, 4\], the model's \[32, 16, 3, 3\]"),
        (lambda model: nn.Linear(4, 4), "it has no such weight"),
        (lambda model: 3, "no average that is known"),
        (lambda model: "ema.pt", "no average that is known"),
        (lambda model: [], "no average that is known"),
    ],
)
def test_what_is_no_average_of_this_model_is_refused(average: Callable[[Any], Any], said: str) -> None:
    model = convnet()
    with pytest.raises(PlanError, match=said) as caught:
        averages.weights(average(model), model, NAMES)
    assert "state dict" in caught.value.fix


@pytest.mark.parametrize("kind", ["averaged", "subclass", "timm", "object", "parallel"])
def test_a_saved_average_has_the_models_own_names(kind: str, tmp_path: Path) -> None:
    model = convnet()
    nm.save(KINDS[kind](model), tmp_path / "average.safetensors")
    loaded = nm.load(tmp_path / "average.safetensors", convnet(seed=1))
    assert loaded.keys() == model.state_dict().keys()
    assert all(torch.equal(loaded[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("kind", ["shadows", "shadows' state", "list"])
def test_a_list_of_tensors_is_not_saved_but_copied_to_a_model_first(kind: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"copy_to\(model\.parameters\(\)\)"):
        nm.save(KINDS[kind](convnet()), tmp_path / "average.safetensors")
    assert not list(tmp_path.iterdir())
