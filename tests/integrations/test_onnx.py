"""ONNX files: the outputs of ONNX Runtime, the zeros in the file, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import exported
import nets
import nmlearn as nm
from impossible_paths import NAMES
from nmlearn.errors import ConfigError, ExportError, PatternError, PlanError, ViolationError, WriteError
from nmlearn.maths.groups import Grouping
from nmlearn.maths.pattern import Pattern

onnx = pytest.importorskip("onnx", reason="needs the optional package onnx")
pytest.importorskip("onnxscript", reason="needs the optional package onnxscript")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the optional package onnxruntime")

from nmlearn.integrations import onnx as subject  # noqa: E402
from nmlearn.integrations.onnx import export_onnx  # noqa: E402
from nmlearn.integrations.onnx_runtime import difference  # noqa: E402

LAYOUTS = {
    "resnet": ("Conv", "[out, in, ...]", 1),
    "mlp": ("Gemm", "[out, in]", 1),
    "encoder": ("MatMul", "[in, out]", 0),
}


def stored(path: Path, name: str) -> Tensor:
    """An initializer of a file, read again."""
    (found,) = [i for i in onnx.load(path).graph.initializer if i.name == name]
    return torch.from_numpy(onnx.numpy_helper.to_array(found).copy())


@pytest.mark.parametrize("pattern", exported.PATTERNS)
@pytest.mark.parametrize("kind", exported.MODELS)
def test_outputs_and_zeros_are_the_models(kind: str, pattern: str, tmp_path: Path) -> None:
    model, inputs = exported.MODELS[kind](pattern)
    export = export_onnx(model, inputs, tmp_path / "model.onnx", dynamic_batch=pattern == "2:4")
    assert export.difference is not None and export.difference.relative < 1e-5
    assert export.difference.absolute < 1e-5
    operator, layout, axis = LAYOUTS[kind]
    taken = exported.sparsify(model, pattern, rules={"blocks.*": pattern} if kind == "encoder" else None)
    assert {weight.name for weight in export.weights} == taken.keys()
    for weight in export.weights:
        assert (weight.operator, weight.layout, weight.axis) == (operator, layout, axis)
        assert weight.pattern.density == Pattern(pattern).density
        assert weight.two_of_four
        values = stored(export.path, weight.initializer)
        assert values.shape == weight.shape
        counts = Grouping(Pattern(pattern), weight.axis).view(values != 0).sum(-1)
        assert counts.max() == Pattern(pattern).n
        assert bool((counts > 0).any())


def test_batch_norm_scales_rows_and_keeps_zeros(tmp_path: Path) -> None:
    model, inputs = exported.resnet("2:4")
    export = export_onnx(model, inputs, tmp_path / "model.onnx")
    assert "BatchNormalization" not in {node.op_type for node in onnx.load(export.path).graph.node}
    own = model.get_parameter("layer1.0.conv1.weight").detach()
    file = stored(export.path, "layer1.0.conv1.weight")
    assert torch.equal(own != 0, file != 0)
    scale = model.layer1[0].bn1.weight / (model.layer1[0].bn1.running_var + 1e-5).sqrt()
    assert bool((scale < 0).any())
    torch.testing.assert_close(file, own * scale.detach()[:, None, None, None])


def test_a_learned_model(tmp_path: Path) -> None:
    sparsifier = nets.learn(nm.LBC("2:4", end=0.5), rules={"hidden": "1:16"})
    taken = sparsifier.plan.sparse
    sparsifier.finalize()
    model = sparsifier.model
    model.train()
    patterns = {row.name: row.grouping for row in taken}
    export = export_onnx(model, torch.randn(4, 3, 8, 8), tmp_path / "new" / "model.onnx", patterns=patterns)
    found = {weight.name: str(weight.pattern) for weight in export.weights}
    assert found == {"conv.weight": "2:4", "grouped.weight": "2:4", "hidden.weight": "1:16"}
    assert all(module.training for module in model.modules())
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["model.onnx"]
    assert "hidden.weight  1:16    hidden.weight  Gemm     32x32     [out, in]      yes" in str(export)
    assert "ONNX Runtime differs by" in str(export)


@pytest.mark.filterwarnings("ignore:The tensor attributes self.rnn._flat_weights:UserWarning")
def test_other_layers_are_found_in_their_layouts(tmp_path: Path) -> None:
    model = nets.Layers()
    exported.sparsify(model, "2:4", rules={"*": "2:4"})
    export = export_onnx(model, torch.randn(2, 3, 8), tmp_path / "model.onnx")
    rows = {weight.name: (weight.operator, weight.layout, weight.axis, weight.two_of_four) for weight in export.weights}
    assert rows == {
        "conv1.weight": ("Conv", "[out, in, ...]", 1, True),
        "up.weight": ("ConvTranspose", "[in, out, ...]", 0, False),
        "conv3.weight": ("Conv", "[out, in, ...]", 1, True),
        "attention.in_proj_weight": ("MatMul", "[in, out]", 0, True),
        "attention.out_proj.weight": ("Gemm", "[out, in]", 1, True),
        "rnn.weight_ih_l0": ("LSTM", "[directions, out, in]", 2, False),  # whose gates ONNX orders otherwise
        "rnn.weight_hh_l0": ("LSTM", "[directions, out, in]", 2, False),
        "head.weight": ("Gemm", "[out, in]", 1, True),
    }


class Odd(nn.Module):
    """Weights that are written twice, in parts, not at all, or used by an operator of which we know little."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Linear(16, 16)
        self.parts = nn.Linear(16, 8)
        self.idle = nn.Linear(16, 8)
        self.experts = nn.Parameter(torch.randn(3, 8, 16))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.twice(self.twice(x)[:, None])[:, 0]
        halves = torch.cat(
            [nn.functional.linear(y, part) for part in (self.parts.weight[:4], self.parts.weight[4:])], 1
        )
        return {"experts": torch.einsum("bi,eoi->beo", y, self.experts), "halves": halves}


def test_odd_uses(tmp_path: Path) -> None:
    model = Odd()
    names = ("twice.weight", "parts.weight", "idle.weight", "experts")
    exported.sparsify(model, "2:4", rules={"*": "2:4", "experts": "2:4"})
    export = export_onnx(model, torch.randn(2, 16), tmp_path / "model.onnx", patterns=dict.fromkeys(names, "2:4"))
    rows = [(weight.name, weight.operator, weight.layout) for weight in export.weights]
    assert rows == [
        ("twice.weight", "Gemm", "[out, in]"),
        ("twice.weight", "MatMul", "[in, out]"),
        ("parts.weight", "Gemm", "[out, in]"),
        ("parts.weight", "Gemm", "[out, in]"),
        ("experts", "Einsum", "[..., ..., in]"),
    ]
    assert export.unused == ("idle.weight",)


def test_only_some_patterns_are_subsets_of_two_of_four(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(16, 8, bias=False), nn.Linear(8, 4))
    with torch.no_grad():
        model[0].weight[:, [3, 4, 5, 6, 11, 12, 13, 14]] = 0  # 4:8, three of them in one aligned four
        model[0].weight[:, [0, 8]] = 1
    export = export_onnx(model, torch.randn(2, 16), tmp_path / "m.onnx", patterns={"0.weight": "4:8"})
    assert [weight.two_of_four for weight in export.weights] == [False]


def test_other_types(tmp_path: Path) -> None:
    model, inputs = exported.mlp("2:4")
    export = export_onnx(model.double(), inputs.double(), tmp_path / "double.onnx")
    assert export.difference is not None and export.difference.relative < 1e-12
    export = export_onnx(model.half(), inputs.half(), tmp_path / "half.onnx", tolerance=1e-2)
    assert len(export.weights) == 2
    export = export_onnx(model.bfloat16(), inputs.bfloat16(), tmp_path / "bfloat16.onnx", verify=False)
    assert len(export.weights) == 2 and export.difference is None
    assert "not compared" in export.summary()


def test_opsets(tmp_path: Path) -> None:
    model, inputs = exported.mlp("2:4")
    for opset in (18, 21):
        export = export_onnx(model, inputs, tmp_path / "model.onnx", opset=opset)
        assert {each.domain: each.version for each in onnx.load(export.path).opset_import}[""] == export.opset == opset
    with pytest.raises(ConfigError, match="opset: given 17"):
        export_onnx(model, inputs, tmp_path / "model.onnx", opset=17)


def test_a_broken_pattern_is_refused_by_name(tmp_path: Path) -> None:
    model, inputs = exported.mlp("2:4")
    patterns = dict.fromkeys(("0.weight", "2.weight"), "2:4")
    with torch.no_grad():
        model[2].weight[5, 8:12] = 1.0
    with pytest.raises(
        ViolationError, match=r"2\.weight: 1 of 256 groups break 2:4; the first is \[5, 8:12\]"
    ) as caught:
        export_onnx(model, inputs, tmp_path / "model.onnx", patterns=patterns)
    assert caught.value.where == "2.weight"
    assert list(tmp_path.iterdir()) == []


class Doubled(nn.Linear):
    """Computes with another weight than it has."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight.roll(1, 1) + self.weight)


def test_zeros_that_the_file_does_not_have_are_refused(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 4))
    patterns = exported.sparsify(model, "1:4", rules={"*": "1:4"})
    model[1].__class__ = Doubled  # a plan leaves it dense
    path = tmp_path / "model.onnx"
    path.write_text("what was there before")
    with pytest.raises(ViolationError, match=r"1\.weight.*none of its initializers has these zeros"):
        export_onnx(model, torch.randn(2, 16), path, patterns=patterns)
    assert path.read_text() == "what was there before"
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


def test_names_and_patterns_that_do_not_fit(tmp_path: Path) -> None:
    model, inputs = exported.mlp("2:4")
    with pytest.raises(PlanError, match=r"no\.weight"):
        export_onnx(model, inputs, tmp_path / "m.onnx", patterns={"no.weight": "2:4"})
    with pytest.raises(PatternError, match=r"0\.weight: .*16 input channels, not a multiple of 32"):
        export_onnx(model, inputs, tmp_path / "m.onnx", patterns={"0.weight": "2:32"})


CALLS: list[int] = []


class Counting(nn.Module):
    """Computes something else at every call, of which an export knows only one."""

    def forward(self, x: Tensor) -> Tensor:
        CALLS.append(1)
        return x + len(CALLS)


class Branching(nn.Module):
    """Branches on values, which no graph can contain."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 1 if x.sum() > 0 else x


def test_other_outputs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="more than the tolerance"):
        export_onnx(Counting(), torch.ones(2, 16), tmp_path / "model.onnx")
    model, inputs = exported.mlp("2:4")
    with pytest.raises(ExportError, match=r"Sequential with inputs of torch.float32 \[2, 15\]: .* mat1 and mat2"):
        export_onnx(model, torch.randn(2, 15), tmp_path / "model.onnx")
    with pytest.raises(ExportError, match=r"torch.onnx cannot export it: .*data-dependent"):
        export_onnx(Branching(), torch.ones(2, 16), tmp_path / "model.onnx")
    with pytest.raises(ExportError, match="ONNX Runtime cannot run it"):
        export_onnx(model.bfloat16(), inputs.bfloat16(), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_missing_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = exported.mlp("2:4")
    find = subject.importlib.util.find_spec
    monkeypatch.setattr(subject.importlib.util, "find_spec", lambda name: find(name) if name != "onnxruntime" else None)
    assert export_onnx(model, inputs, tmp_path / "model.onnx").difference is None
    monkeypatch.setattr(subject.importlib.util, "find_spec", lambda name: find(name) if name != "onnxscript" else None)
    with pytest.raises(ConfigError, match=r"pip install 'nmlearn\[onnx\]'"):
        export_onnx(model, inputs, tmp_path / "model.onnx")


@pytest.mark.parametrize("name", NAMES)
def test_a_path_that_no_file_can_have(name: str, tmp_path: Path) -> None:
    model, inputs = exported.mlp("2:4")
    with pytest.raises(WriteError):
        export_onnx(model, inputs, tmp_path / NAMES[name])
    assert not list(tmp_path.iterdir())


def test_differences() -> None:
    inf, nan = float("inf"), float("nan")
    found = difference([torch.tensor([1.0, -4.0]), torch.zeros(2)], [torch.tensor([1.0, -4.5]), torch.zeros(2)])
    assert (found.absolute, found.relative) == (0.5, 0.125)
    assert difference([torch.zeros(1)], [torch.ones(1)]).relative == 1.0
    assert difference([torch.tensor([inf, nan, 1])], [torch.tensor([inf, nan, 1])]).relative == 0.0
    for other in ([0.0, 1.0], [nan, 1.0], [-inf, 1.0]):
        assert difference([torch.tensor([inf, 1.0])], [torch.tensor(other)]).relative == inf
    assert difference([torch.zeros(2)], [torch.zeros(3)]).relative == inf
    assert difference([torch.zeros(0)], [torch.zeros(0)]).relative == 0.0
