"""PackedLinear and PackedConv2d as modules: copied, saved, converted, loaded; and what they refuse."""

import copy
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

import nmlearn as nm
import operands
from nmlearn.errors import KernelError, NMLearnError, StateError
from nmlearn.native import library as native
from nmlearn.packed.modules import Packed, PackedConv2d, PackedLinear

MAKERS: dict[str, Callable[[], operands.Call]] = {
    "linear rows": lambda: operands.linear("2:4", "rows", activation="relu"),
    "linear tokens": lambda: operands.linear("1:8", "tokens"),
    "linear int8": lambda: operands.linear("1:4", "rows", int8=True),
    "linear int8 tokens": lambda: operands.linear("1:4", "tokens", int8=True),
    "linear bytes": lambda: operands.linear("2:4", "bytes"),
    "linear without bias": lambda: operands.linear("2:4", "rows", bias=False),
    "conv rows": lambda: operands.conv("2:4", "rows", padding=(1, 1), groups=2),
    "conv tokens": lambda: operands.conv("1:4", "tokens", stride=(2, 1)),
    "conv int8": lambda: operands.conv("1:4", "rows", int8=True),
    "conv bytes": lambda: operands.conv("1:4", "bytes", (1, 1)),
}


@pytest.fixture(params=MAKERS)
def call(request: pytest.FixtureRequest) -> operands.Call:
    made = MAKERS[request.param]()
    made.layer.eval()
    return made


def same(layer: nn.Module, call: operands.Call) -> None:
    assert torch.equal(layer(call.x, call.residual), call.packed())


def test_copied_and_pickled(call: operands.Call, tmp_path: Path) -> None:
    for twin in (copy.deepcopy(call.layer), pickle.loads(pickle.dumps(call.layer))):
        same(twin, call)
        assert twin.values.data_ptr() != call.layer.values.data_ptr()
        assert repr(twin) == repr(call.layer)
    torch.save(nn.Sequential(call.layer), tmp_path / "layer.pt")
    same(torch.load(tmp_path / "layer.pt", weights_only=False)[0], call)


def other(call: operands.Call) -> Packed:
    """A layer of the same form with other weights."""
    twin = copy.deepcopy(call.layer)
    weight = -call.weight.roll(1, 0)
    int8 = call.layer.scale is not None
    if isinstance(twin, PackedConv2d):
        places = {key: getattr(twin, key) for key in ("stride", "padding", "dilation", "groups")}
        made: Packed = PackedConv2d(
            weight, twin.bias, twin.pattern, layout=twin.layout, activation=twin.activation, int8=int8, **places
        )
    else:
        made = PackedLinear(weight, twin.bias, twin.pattern, layout=twin.layout, activation=twin.activation, int8=int8)
    return made


def test_state_dict(call: operands.Call, tmp_path: Path) -> None:
    state = call.layer.state_dict()
    expected = {"values", "index", "bias", "scale"} - {k for k in ("bias", "scale") if getattr(call.layer, k) is None}
    assert set(state) == expected
    twin = other(call)
    assert not torch.equal(twin(call.x, call.residual), call.packed())
    twin.load_state_dict(state)
    same(twin, call)
    torch.save(state, tmp_path / "state.pt")
    safetensors.torch.save_file(state, tmp_path / "state.safetensors")
    for loaded in (torch.load(tmp_path / "state.pt"), safetensors.torch.load_file(tmp_path / "state.safetensors")):
        for assign in (False, True):
            twin = other(call)
            twin.load_state_dict(loaded, assign=assign)
            same(twin, call)
    with torch.device("meta"):
        empty = copy.deepcopy(twin).to("meta")
    empty.load_state_dict(state, assign=True)
    same(empty, call)


def test_state_of_another_pattern() -> None:
    for layout in operands.LAYOUTS:
        weight = torch.zeros(8, 32)
        weight[:, 8:16] = 1.0
        right, wrong = (PackedLinear(weight * k, None, p, layout=layout) for k, p in ((0, "4:8"), (1, "8:16")))
        model = nn.Sequential(right)
        with pytest.raises(RuntimeError, match=r"0\.index: given an index that names inputs outside their groups"):
            model.load_state_dict({f"0.{key}": value for key, value in wrong.state_dict().items()})


def unchanged(layer: nn.Module, state: dict[str, torch.Tensor], text: str) -> None:
    before = copy.deepcopy(layer.state_dict())
    for assign in (False, True):
        with pytest.raises(RuntimeError, match=text):
            layer.load_state_dict(state, assign=assign)
        assert all(torch.equal(tensor, before[key]) for key, tensor in layer.state_dict().items())


def test_state_of_another_shape() -> None:
    small, large = (operands.linear("2:4", "rows", 16, channels).layer for channels in (32, 64))
    unchanged(small, large.state_dict(), "size mismatch for values")


# With 1:4 in row lanes every code is an input of its own group.
CAN_BE_WRONG = ["linear rows", "linear tokens", "linear int8 tokens", "linear bytes", "conv rows", "conv tokens"]


@pytest.mark.parametrize("call", CAN_BE_WRONG, indirect=True)
def test_a_refused_state_changes_nothing(call: operands.Call) -> None:
    right = other(call).state_dict()
    bad = right["index"].clone()
    bad[0] = -1 if call.layer.layout == "rows" else 255
    unchanged(call.layer, right | {"index": bad}, "index that names inputs outside their groups")
    unchanged(call.layer, right | {"extra": bad}, "Unexpected key.*extra")
    unchanged(call.layer, {key: tensor for key, tensor in right.items() if key != "values"}, "Missing key.*values")
    unchanged(call.layer, right | {"index": "text"}, "size mismatch for index: given str")


@pytest.mark.parametrize("call", CAN_BE_WRONG, indirect=True)
def test_a_refused_file_changes_nothing(call: operands.Call, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4), call.layer)
    right = nn.Sequential(nn.Linear(4, 4), other(call)).state_dict()
    nm.save(right, tmp_path / "right.safetensors", packed=False)
    right["1.index"][0] = -1 if call.layer.layout == "rows" else 255
    nm.save(right, tmp_path / "wrong.safetensors", packed=False)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(StateError, match=r"1\.index: given an index that names inputs outside their groups"):
        nm.load(tmp_path / "wrong.safetensors", model)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    nm.load(tmp_path / "right.safetensors", model)
    assert torch.equal(model[1].values, right["1.values"])


def test_state_without_an_index() -> None:
    layer = operands.linear("2:4", "rows").layer
    state = {key: value for key, value in layer.state_dict().items() if key != "index"}
    assert layer.load_state_dict(state, strict=False).missing_keys == ["index"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_types(call: operands.Call, dtype: torch.dtype) -> None:
    before = call.packed()
    call.layer.to(dtype)
    if call.layer.scale is not None:
        assert call.layer.values.dtype == torch.int8
        assert call.layer.scale.dtype == torch.float32
        call.weight = call.weight.to(dtype)
    else:
        call.weight = call.layer.dense_weight()
        assert call.weight.dtype == dtype
    call.x = call.x.to(dtype)
    call.residual = None if call.residual is None else call.residual.to(dtype)
    call.check(2)
    torch.testing.assert_close(call.packed().float(), before, rtol=0.05, atol=0.05)
    call.layer.float()
    assert call.layer.values.dtype in (torch.float32, torch.int8)


def test_inference(call: operands.Call) -> None:
    expected = call.packed()
    for context in (torch.inference_mode, torch.no_grad):
        with context():
            assert torch.equal(call.packed(), expected)
    assert not any(p.requires_grad for p in call.layer.parameters())
    assert list(call.layer.parameters()) == []
    for mode in (True, False):
        call.layer.train(mode)
        assert torch.equal(call.packed(), expected)


def test_gradients_are_refused(call: operands.Call) -> None:
    call.x.requires_grad_()
    with pytest.raises(KernelError, match="packed weights are for inference"):
        call.packed()
    with torch.no_grad():
        call.packed()


def test_takes_a_parameter() -> None:
    linear = nn.Linear(16, 8)
    with torch.no_grad():
        linear.weight *= torch.tensor([1.0, 1, 0, 0]).repeat(4)
        layer = PackedLinear(linear.weight, linear.bias, "2:4")
        linear_output = linear(torch.ones(2, 16))
        linear.weight.zero_()
        assert linear.bias is not None
        linear.bias.zero_()
    torch.testing.assert_close(layer(torch.ones(2, 16)), linear_output)


def test_the_input_as_residual() -> None:
    for layout in operands.LAYOUTS:
        call = operands.linear("2:4", layout, 36, 36)
        call.residual = call.x
        before = call.x.clone()
        call.check()
        assert torch.equal(call.x, before)


def refused(call: Callable[[], object], where: str, text: str) -> None:
    with pytest.raises(NMLearnError, match=text) as raised:
        call()
    assert where in raised.value.where
    assert raised.value.given
    assert raised.value.fix


def test_wrong_inputs(call: operands.Call) -> None:
    name = type(call.layer).__name__
    layer: Any = call.layer
    refused(lambda: layer(call.x[..., :-1] if name == "PackedLinear" else call.x[:, :-1]), name, "the layer expects")
    refused(lambda: layer(call.x[0, 0, 0] if call.x.dim() == 4 else call.x[0, 0]), name, "the layer expects")
    for wrong in (call.x.to(torch.bfloat16), call.x.double(), call.x.half()):
        refused(lambda x=wrong: layer(x), "nmlearn.packed", "it must be")
    refused(lambda: layer(call.x.int()), "nmlearn.packed", "activations are a floating-point tensor")
    y = call.packed()
    refused(lambda: layer(call.x, y[..., :-1]), "residual", "the output has the shape")
    refused(lambda: layer(call.x, y.double()), "residual", "it must be")
    refused(lambda: layer(call.x, y.to("meta")), "residual", "it must be")
    layer.bias = torch.zeros(3)
    refused(lambda: layer(call.x), "bias", "one number for each of")


def test_wrong_buffers(call: operands.Call) -> None:
    layer: Any = call.layer
    index, values = layer.index, layer.values
    layer.index = index.repeat(2)[::2]
    refused(lambda: layer(call.x), "index", "contiguous index of shape")
    layer.index = index.long()
    refused(lambda: layer(call.x), "index", "it must be torch")
    layer.index = index.to("meta")
    refused(lambda: layer(call.x), "index", "it must be torch")
    layer.index, layer.values = index, values.flatten()[1:]
    refused(lambda: layer(call.x), "values", "contiguous values of shape")
    layer.values, layer.layout = values, "columns"
    refused(lambda: layer(call.x), "layout", "choose from rows, tokens")


def test_wrong_arguments() -> None:
    weight = torch.zeros(4, 8)
    refused(lambda: PackedLinear(weight, torch.zeros(3), "2:4", name="fc"), "fc", "the weight has 4 outputs")
    refused(lambda: PackedLinear(weight, None, "2:x", name="fc"), "pattern", "not a pattern")
    images = torch.zeros(4, 8, 3, 3)
    refused(lambda: PackedConv2d(weight, None, "2:4", name="conv"), "conv", "2-D convolution")
    refused(lambda: PackedConv2d(images, None, "2:4", groups=3, name="conv"), "conv", "3 equal groups")
    wrong: list[dict[str, Any]] = [
        {"stride": 0}, {"stride": (1, 2, 3)}, {"padding": "same"}, {"padding": (-1, 0)}, {"dilation": (1, 0.5)}
    ]  # fmt: skip
    for options in wrong:
        refused(lambda o=options: PackedConv2d(images, None, "2:4", name="conv", **o), "conv", "two whole numbers")
    small = PackedConv2d(images, None, "2:4", stride=2, padding=0)  # type: ignore[arg-type]
    assert small.stride == (2, 2)
    refused(lambda: small(torch.zeros(1, 8, 2, 2)), "nmlearn.packed", "images smaller than the kernel")


def test_index_of_lies_reads_nothing_outside() -> None:
    """What a tampered index names is wrong, but a place that exists (`make sanitize` checks that)."""
    for layout in operands.LAYOUTS:
        call = operands.linear("1:4", layout, 40, 16, (3,), residual=False)
        call.layer.index.fill_(-1 if layout == "rows" else 255)
        assert call.packed().shape == (3, 40)


def test_uses_the_threads_of_torch() -> None:
    """Also in a user's thread, which torch sets up when it first computes there."""
    lib = native.library()
    if lib is None:
        pytest.skip("the library is not built (make kernels)")
    torch.set_num_threads(1)
    call, seen = operands.linear("2:4", "rows", 64, 64), []
    thread = threading.Thread(target=lambda: (call.packed(), seen.append(lib.nm_threads())))
    thread.start()
    thread.join()
    assert seen == [1]


def test_runs_in_many_threads_at_once() -> None:
    call = operands.linear("2:4", "tokens", 64, 64, (40,))
    expected, found = call.packed(), []
    threads = [threading.Thread(target=lambda: found.append(call.packed())) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6
    assert all(torch.equal(y, expected) for y in found)
