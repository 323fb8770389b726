"""Recurrent layers in ONNX files: one initializer for both directions, gates in another order, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import exported
from nmlearn.errors import ExportError, ViolationError

onnx = pytest.importorskip("onnx", reason="needs the optional package onnx")
for package in ("onnxscript", "onnxruntime"):
    pytest.importorskip(package, reason=f"needs the optional package {package}")

from nmlearn.integrations.onnx import export_onnx  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:The tensor attributes self.*_flat_weights:UserWarning")
LAYERS = [
    (nn.LSTM, {"bidirectional": True}),
    (nn.LSTM, {"bidirectional": True, "bias": False, "num_layers": 2, "batch_first": True}),
    pytest.param(nn.GRU, {"bidirectional": True}, marks=pytest.mark.slow),
    (nn.GRU, {"bidirectional": True, "bias": False, "num_layers": 2, "batch_first": True, "dropout": 0.5}),
    pytest.param(nn.GRU, {"num_layers": 2}, marks=pytest.mark.slow),
    pytest.param(nn.RNN, {"bidirectional": True, "num_layers": 2, "nonlinearity": "relu"}, marks=pytest.mark.slow),
]
GATES = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2)}  # of ONNX: iofc of ifco, zrh of rzh


class Tagger(nn.Module):
    """A recurrent layer with its last states, and a head."""

    def __init__(self, kind: type[nn.RNNBase], **options: Any) -> None:
        super().__init__()
        self.rnn = kind(16, 8, **options)  # type: ignore[call-arg]
        self.head = nn.Linear(16 if self.rnn.bidirectional else 8, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Any]:
        y, last = self.rnn(x)
        return self.head(y), last


@pytest.mark.parametrize(("kind", "options"), LAYERS)
def test_outputs_and_zeros_are_the_models(kind: type[nn.RNNBase], options: dict[str, Any], tmp_path: Path) -> None:
    model = Tagger(kind, **options)
    groupings = exported.sparsify(model, "2:4", rules={"rnn.weight_ih_*": "1:4"})
    export = export_onnx(model, torch.randn(3, 3, 16), tmp_path / "model.onnx", patterns=groupings)
    assert export.difference is not None and export.difference.absolute < 1e-5
    assert export.unused == ()
    assert [weight.name for weight in export.weights] == list(groupings)
    directions = 2 if options.get("bidirectional") else 1
    for weight in export.weights:
        assert weight.pattern == groupings[weight.name].pattern
        if kind is not nn.RNN:  # which is written as products, each with a weight of its own
            assert (weight.operator, weight.layout, weight.axis) == (kind.__name__, "[directions, out, in]", 2)
            assert not weight.two_of_four
            (values,) = [i for i in onnx.load(export.path).graph.initializer if i.name == weight.initializer]
            found = torch.from_numpy(onnx.numpy_helper.to_array(values).copy())
            assert found.shape == weight.shape and len(found) == directions
            own = model.get_parameter(weight.name).detach().unflatten(0, (-1, 8))
            gates = own[list(GATES[kind.__name__])].flatten(0, 1)
            assert torch.equal(found[int(weight.name.endswith("_reverse"))], gates)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_a_free_batch(tmp_path: Path) -> None:
    model = Tagger(nn.LSTM, bidirectional=True, batch_first=True)
    exported.sparsify(model, "2:4")
    export = export_onnx(model, torch.randn(2, 5, 16), tmp_path / "model.onnx", dynamic_batch=True)
    assert export.difference is not None and export.difference.absolute < 1e-5
    assert len(export.weights) == 4


class Joined(nn.Module):
    """Layers that are computed as one, one of them twice: the exporter writes what they make together."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(16, out, bias=False) for out in (8, 8, 4))

    def forward(self, x: Tensor) -> Tensor:
        weights = (self.query.weight, self.key.weight, self.dense(self.value.weight), self.query.weight)
        return nn.functional.linear(x, torch.cat(weights))

    def dense(self, weight: Tensor) -> Tensor:
        return weight


class Filled(Joined):
    """Loses the zeros of one part on the way."""

    def dense(self, weight: Tensor) -> Tensor:
        return weight + 1.0


def test_weights_that_are_joined(tmp_path: Path) -> None:
    model = Joined()
    exported.sparsify(model, "2:4", rules={"*": "2:4", "key": "1:4", "value": None})
    export = export_onnx(model, torch.randn(2, 16), tmp_path / "model.onnx")
    rows = {weight.name: (str(weight.pattern), weight.shape, weight.two_of_four) for weight in export.weights}
    assert rows == {"query.weight": ("2:4", (28, 16), False), "key.weight": ("1:4", (28, 16), False)}
    model = Filled()
    exported.sparsify(model, "2:4", rules={"*": "2:4"})
    with pytest.raises(ViolationError, match=r"value\.weight: none of its initializers has these zeros") as caught:
        export_onnx(model, torch.randn(2, 16), tmp_path / "model.onnx")
    assert "query" not in str(caught.value)


@pytest.mark.parametrize("options", [{}, {"bidirectional": True}])
def test_projections_are_refused_by_name(options: dict[str, Any], tmp_path: Path) -> None:
    model = nn.Sequential(nn.LSTM(16, 8, proj_size=4, **options))
    with pytest.raises(ExportError, match=r"0: given LSTM\(16, 8, proj_size=4.*writes no projection") as caught:
        export_onnx(model, torch.randn(2, 3, 16), tmp_path / "model.onnx", verify=False)
    assert caught.value.where == "0"
    assert list(tmp_path.iterdir()) == []
