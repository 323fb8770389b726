"""What a call may trust from the calls before it: tensors, settings and torch's state that changed in between."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

import operands
from nmlearn.errors import KernelError, NMLearnError
from nmlearn.packed import kernels
from nmlearn.packed.modules import PackedConv2d, PackedLinear

MAKERS: dict[str, Callable[[], operands.Call]] = {
    "linear": lambda: operands.linear("2:4", "rows", activation="relu"),
    "linear int8": lambda: operands.linear("1:4", "rows", int8=True),
    "conv": lambda: operands.conv("2:4", "rows", padding=(1, 1)),
    "conv tokens": lambda: operands.conv("1:4", "tokens"),
}
TENSORS = ("x", "residual", "values", "index", "bias")


@pytest.fixture(params=[(name, called) for name in MAKERS for called in (True, False)], ids=lambda p: f"{p[0]} {p[1]}")
def call(request: pytest.FixtureRequest) -> operands.Call:
    """A layer that was called before, or was not."""
    name, called = request.param
    made = MAKERS[name]()
    for _ in range(2 * called):
        made.packed()
    return made


def named(call: operands.Call, name: str) -> Tensor:
    tensor: Tensor = getattr(call if name in ("x", "residual") else call.layer, name)
    return tensor


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_another_default_device(call: operands.Call, device: str) -> None:
    with torch.device(device):
        inside = call.packed()
    torch.set_default_device(device)
    try:
        always = call.packed()
    finally:
        torch.set_default_device(None)
    for y in (inside, always):
        assert torch.equal(y, call.packed())


@pytest.mark.parametrize("name", TENSORS)
def test_data_of_another_size(call: operands.Call, name: str) -> None:
    tensor = named(call, name)
    tensor.data = tensor.data.flatten()[:2].clone()
    with pytest.raises(KernelError):
        call.packed()


@pytest.mark.parametrize("name", TENSORS)
def test_data_of_another_type(call: operands.Call, name: str) -> None:
    tensor = named(call, name)
    tensor.data = tensor.data.double()
    with pytest.raises(KernelError, match="it must be torch"):
        call.packed()


@pytest.mark.parametrize("name", TENSORS)
def test_storage_of_no_size(call: operands.Call, name: str) -> None:
    named(call, name).untyped_storage().resize_(0)
    with pytest.raises(KernelError, match="its storage was resized to 0"):
        call.packed()


def test_data_of_the_same_kind(call: operands.Call) -> None:
    call.layer.values.data = call.layer.values.data.neg()
    call.weight = -call.weight
    call.check(2)


def test_sparse_tensors(call: operands.Call) -> None:
    call.x = call.x.to_sparse()
    with pytest.raises(KernelError, match="dense, on the same device"):
        call.packed()


def test_settings_that_change(call: operands.Call) -> None:
    for activation in ("gelu", "none"):
        call.layer.activation = activation
        call.check(2)
    call.layer.activation = "tanh"
    with pytest.raises(KernelError, match="choose from none, relu"):
        call.packed()
    call.layer.activation, call.layer.layout = "none", "tokens" if call.layer.layout == "rows" else "rows"
    with pytest.raises(NMLearnError):
        call.packed()


def test_places_that_change() -> None:
    call = operands.conv("2:4", "rows", residual=False)
    call.check()
    assert isinstance(call.layer, PackedConv2d)
    for name, value in (("padding", [1, 2]), ("stride", 2), ("dilation", (1, 2))):
        setattr(call.layer, name, value)
        call.options[name] = getattr(call.layer, name)
        call.check()
    with pytest.raises(KernelError, match="two whole numbers"):
        call.layer.padding = (1, -1)
    with pytest.raises(AttributeError):
        call.layer.groups = 2  # type: ignore[misc]


PLACES = {"kernel": 3, "stride": 1, "padding": 0, "dilation": 1}


def raw(**changes: object) -> Tensor:
    """The operator on a small convolution with some of its arguments changed."""
    layer, x = operands.conv("2:4", "rows", rows=16, channels=16).layer, torch.randn(2, 16, 6, 7)
    arguments: dict[str, object] = {"x": x, "scale": None, "bias": None, "residual": None, "n": 2, "m": 4, "rows": 16}
    arguments |= {"values": layer.values, "index": layer.index, "groups": 1, "images": True, "layout": "rows"}
    places = {f"{name}_{side}": length for name, length in PLACES.items() for side in "hw"}
    arguments |= {"activation": "none", **places}
    y: Tensor = torch.ops.nmlearn.packed(**arguments | changes)
    return y


@pytest.mark.parametrize(
    ("name", "values"),
    {
        "kernel_h": [-3, 0, 1, 2**61],
        "stride_w": [-1, 0, 2**61],
        "padding_h": [-1, 2**61],
        "dilation_w": [-1, 0, 9, 2**61],
        "groups": [0, -1, 3, 2**61],
        "rows": [-16, 32, 2**61],
        "m": [0, -4, 2**61],
        "n": [0, -2, 5],
        "images": [False],
    }.items(),
)
def test_impossible_geometry(name: str, values: list[object]) -> None:
    assert raw().shape == (2, 16, 4, 5)
    for value in values:
        with pytest.raises(NMLearnError) as raised:
            raw(**{name: value})
        assert raised.value.given


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(call: operands.Call, dtype: torch.dtype) -> None:
    """As a dense layer; here and compiled, and for what a dense layer before it gives."""
    torch._dynamo.reset()
    exact = call.plain(torch.float32)
    compiled = torch.compile(lambda x: call.layer(x, call.residual), fullgraph=True, backend="aot_eager")
    with torch.no_grad(), torch.autocast("cpu", dtype):
        for x in (call.x, call.x.to(dtype)):
            for y in (call.layer(x, call.residual), compiled(x)):
                assert y.dtype == dtype
                torch.testing.assert_close(y.float(), exact, rtol=0.05, atol=0.1)
        with torch.autocast("cpu", enabled=False):
            assert call.packed().dtype == torch.float32
    assert call.packed().dtype == torch.float32


def test_autocast_between_dense_layers() -> None:
    model = nn.Sequential(nn.Linear(20, 36), operands.linear("2:4", "rows", 33, 36).layer, nn.Linear(33, 3)).eval()
    with torch.inference_mode(), torch.autocast("cpu"):
        assert model(torch.randn(4, 20)).dtype == torch.bfloat16
        doubles = operands.linear("2:4", "rows", dtype=torch.float64)
        assert doubles.packed().dtype == torch.float64  # as nn.Linear


def test_gradients_of_a_residual(call: operands.Call) -> None:
    assert call.residual is not None
    call.residual.requires_grad_()
    with torch.no_grad():
        expected = call.packed()
        assert torch.equal(call.packed(), expected)
    with pytest.raises(KernelError, match="requires a gradient"):
        call.packed()
    call.residual.requires_grad_(False)
    call.layer.bias = call.layer.bias.requires_grad_()  # type: ignore[union-attr]
    with pytest.raises(KernelError, match="requires a gradient"):
        call.packed()


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
def test_forward_mode_derivatives(call: operands.Call) -> None:
    assert call.residual is not None
    for place in (0, 1):
        inputs = [call.x, call.residual]
        with forward_ad.dual_level():
            inputs[place] = forward_ad.make_dual(inputs[place], torch.ones_like(inputs[place]))
            with pytest.raises(KernelError, match="forward-mode derivative"):
                call.layer(*inputs)
    for transform in (torch.func.jvp, torch.func.vjp):
        tangents = () if transform is torch.func.vjp else ((torch.ones_like(call.x),),)
        with pytest.raises(KernelError, match=r"derivative|gradient"):
            transform(lambda x: call.layer(x, call.residual), (call.x,) if tangents else call.x, *tangents)


def test_derivatives_of_decode() -> None:
    layer = kernels.decode_linear
    x = torch.ones(2, 8, requires_grad=True)
    arguments = (torch.zeros(1, 1, 16, 8), torch.zeros(1, 1, 16, dtype=torch.int32), None, 1, 4, 16)
    with pytest.raises(KernelError, match=r"decode_linear: given a tensor that requires a gradient"):
        layer(x, *arguments)
    with torch.autocast("cpu"), torch.no_grad():
        assert layer(x, *arguments).dtype == torch.bfloat16


LOADING = """
import sys, torch
import nmlearn.packed
program = torch.export.load(sys.argv[1])
print(program.module()(torch.ones(3, 20)).shape)
"""


def test_loading_an_exported_program_needs_one_import(tmp_path: Path) -> None:
    layer, path = operands.linear("2:4", "rows", 7, 20).layer.eval(), tmp_path / "layer.pt2"
    torch.export.save(torch.export.export(nn.Sequential(layer), (torch.ones(3, 20),)), path)
    run = [sys.executable, "-c", LOADING, str(path)]
    done = subprocess.run(run, env=os.environ, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "torch.Size([3, 7])"
    without = [sys.executable, "-c", LOADING.replace("nmlearn.packed", "nmlearn"), str(path)]
    failed = subprocess.run(without, env=os.environ, capture_output=True, text=True, check=False)
    assert failed.returncode
    assert "nmlearn.packed" in failed.stderr  # the operator, which is called as the package that registers it


def test_layers_of_one_kind_share_their_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    from nmlearn.packed.kernels import calls

    monkeypatch.setattr(calls, "_CALLS", {})
    layers = [PackedLinear(torch.zeros(16, 16), None, "2:4") for _ in range(3)]
    for layer in layers:
        for tokens in (1, 2):
            layer(torch.ones(tokens, 16))
    assert len(calls._CALLS) in (0, 2)  # none where the kernels are not built
    monkeypatch.setattr(calls, "_MOST_CALLS", 1)
    for tokens in (3, 4, 3):
        assert layers[0](torch.ones(tokens, 16)).shape == (tokens, 16)
    assert len(calls._CALLS) in (0, 1)
