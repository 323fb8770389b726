"""Layers with the inputs that they see in small networks, unfolded by hand, and methods applied to them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import nmlearn as nm
from nets import batches, convnet, sgd, train
from nmlearn.maths.inputs import Inputs, to_rows
from nmlearn.methods.method import State, Weight


@dataclass
class Layer:
    """One weight, and ``x`` as float64 ``[G, T, K]``."""

    name: str
    weight: Tensor
    grouping: nm.Grouping
    x_gtk: Tensor

    def rows(self, weight: Tensor) -> Tensor:
        return to_rows(weight.double(), self.grouping, len(self.x_gtk))

    def error(self, weight: Tensor) -> float:
        """The squared error of the outputs, from the outputs themselves."""
        return float((self.x_gtk @ (self.rows(weight) - self.rows(self.weight)).mT).square().sum())

    def applied(self, method: nm.Method, dtype: torch.dtype = torch.float32) -> tuple[Tensor, State]:
        """What the method makes of a copy of the weight, and its state."""
        inputs = Inputs.of(self.x_gtk.to(dtype), gram=method.needs == "gram")
        w = weight_of(self.weight.clone(), self.grouping, inputs, self.name)
        return w.tensor, method.init(w)


def weight_of(tensor: Tensor, grouping: nm.Grouping, inputs: Inputs | None, name: str = "layer.weight") -> Weight:
    return Weight(name, grouping, tensor, tensor, shape=tuple(tensor.shape), inputs=inputs)


def prepared(model: nn.Module, method: nm.Method) -> nn.Module:
    """The model as a method starts from it: pruned by magnitude for `keep`, calibrated with noise where it asks."""
    if isinstance(method, nm.Keep):
        nm.Sparsifier(model, nm.OneShot(method.pattern)).attach(sgd(model), 1).finalize()
    for row in nm.Sparsifier(model, method).plan.sparse if method.needs != "nothing" else ():
        weight = row.parameter.detach()
        groups = getattr(model.get_submodule(row.name.rpartition(".")[0]), "groups", 1)
        columns = to_rows(weight, row.grouping, groups).shape[-1]
        x = torch.randn(groups, 2 * columns, columns, generator=torch.Generator("cpu").manual_seed(0), device="cpu")
        method.init(weight_of(weight, row.grouping, Inputs.of(x + 0.5, method.needs == "gram"), row.name))
    return model


def rows_of_inputs(layer: nn.Module, x: Tensor) -> Tensor:
    """``[G, T, K]``: tokens, or the patches of a convolution, K over kernel positions and then channels."""
    if isinstance(layer, nn.Linear):
        return x.flatten(0, -2)[None]
    assert isinstance(layer, nn.Conv2d) and layer.padding_mode == "zeros"
    patches = F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)  # [B, channels x places, L]
    patches = patches.unflatten(1, (layer.groups, x.shape[1] // layer.groups, -1))  # [B, G, c, p, L]
    return patches.permute(1, 0, 4, 3, 2).flatten(3).flatten(1, 2)


class Encoder(nn.Module):
    """Two blocks of attention and two linear layers each, over sixteen tokens of twelve numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(12, 32)
        kwargs = {"dim_feedforward": 64, "dropout": 0.0, "batch_first": True}
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(32, 2, **kwargs) for _ in range(2))  # type: ignore[arg-type]
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        patches = x.unflatten(2, (4, 2)).unflatten(4, (4, 2)).permute(0, 2, 4, 1, 3, 5)
        tokens = self.stem(patches.flatten(3).flatten(1, 2))
        for block in self.blocks:
            tokens = block(tokens)
        return self.head(tokens.mean(1))


def mlp() -> nn.Sequential:
    """Linear layers and nothing else, over pixels."""
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 5))


def networks() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {"conv": convnet(), "encoder": Encoder(), "mlp": mlp()}


def layers(name: str, pattern: str) -> list[Layer]:
    """The layers of a network that was trained for a few steps, with the inputs of 64 other images."""
    model = networks()[name]
    # Images that are smooth, so that neighbours are correlated.
    data = [(F.avg_pool2d(x, 3, 1, 1) + 0.3 * y[:, None, None, None], y) for x, y in batches(20)]
    train(model, sgd(model), data[:12])
    seen: dict[str, list[Tensor]] = {}
    plan = nm.Sparsifier(model, nm.OneShot(pattern)).plan
    chosen = {row.name.removesuffix(".weight"): row for row in plan.sparse if row.name.endswith(".weight")}
    for key, module in model.named_modules():
        if key in chosen and type(module) in (nn.Linear, nn.Conv2d):
            seen[key] = []
            module.register_forward_pre_hook(lambda one, given, to=seen[key]: to.append(rows_of_inputs(one, given[0])))
    with torch.no_grad():
        for x, _ in data[12:]:
            model(x)
    return [
        Layer(chosen[key].name, chosen[key].parameter.detach(), chosen[key].grouping, torch.cat(x, 1).double())
        for key, x in seen.items()
        if x
    ]
