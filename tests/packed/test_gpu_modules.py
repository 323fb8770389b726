"""The packed layers for GPUs, without one: Triton in its interpreter, and torch's semi-structured tensors as packed."""

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F

import nmlearn as nm
from nmlearn.errors import KernelError, StateError
from nmlearn.maths.pattern import Pattern
from nmlearn.packed.gpu_modules import DecodeLinear, SemiStructuredConv2d, SemiStructuredLinear
from nmlearn.packed.kernels import triton_decode
from triton_interpreter import Case, agrees, needs_triton


def layer_of(case):
    x, weight, bias = case.operands()
    return x, weight, DecodeLinear(weight, None if bias is None else bias.to(case.dtype), case.pattern)


def computed_by_layer(case):
    """What the layer computes for a case, and how often it ran the kernel; runs in the interpreter's process."""
    x, _, layer = layer_of(case)
    calls, run = [], triton_decode.linear
    triton_decode.linear = lambda *args: calls.append(1) or run(*args)
    try:
        out = layer(x)
    finally:
        triton_decode.linear = run
    return out.double().numpy(), len(calls)


@needs_triton
@pytest.mark.parametrize(("shape", "kernel_ran"), [((1,), 1), ((2, 3), 1), ((64,), 1), ((65,), 0), ((0,), 1)])
def test_decode_runs_the_kernel_up_to_64_tokens(interpreter, shape, kernel_ran):
    case = Case("1:4", torch.float32, shape)
    out, calls = interpreter(computed_by_layer, case)
    agrees(case, out)
    assert calls == kernel_ran


@pytest.mark.parametrize("pattern", ["2:4", "4:8", "1:16", "3:4"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_decode_unpacks_where_there_is_no_kernel(pattern, dtype):
    for shape in ((1,), (65,), (2, 3)):
        x, weight, layer = layer_of(Case(pattern, dtype, shape))
        assert torch.equal(layer.dense_weight(), weight)
        torch.testing.assert_close(layer(x), F.linear(x, weight, layer.bias))
    assert layer.weight_bytes() == layer.values.nbytes + layer.index.nbytes
    assert f"pattern={pattern}" in repr(layer)


def test_decode_is_an_ordinary_module():
    x, weight, layer = layer_of(Case("2:8", shape=(3,)))
    expected = layer(x)
    for again in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(again(x), expected)
    other = DecodeLinear(torch.zeros_like(weight), layer.bias, "2:8")
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), expected)
    half = copy.deepcopy(layer).to(torch.bfloat16)
    assert half.index.dtype == torch.int32 and torch.equal(half.dense_weight(), weight.to(torch.bfloat16))


def test_decode_is_saved_as_the_dense_layer(tmp_path):
    _, weight, layer = layer_of(Case("2:8"))
    nm.save(layer, tmp_path / "m.safetensors")
    tensors = nm.load(tmp_path / "m.safetensors")
    assert list(tensors) == ["weight", "bias"]
    assert torch.equal(tensors["weight"], weight) and torch.equal(tensors["bias"], layer.bias)


def test_decode_does_not_load_the_index_of_another_pattern():
    wide = DecodeLinear(torch.eye(16, 128).roll(7, 1), None, "1:16")
    narrow = DecodeLinear(torch.zeros(16, 32), None, "1:4")
    with pytest.raises(RuntimeError, match="index that names inputs outside their groups"):
        narrow.load_state_dict(wide.state_dict())
    assert not narrow.dense_weight().any()
    wide.load_state_dict(narrow.state_dict())  # not a weight that was meant, but one


def test_decode_is_one_node_of_a_graph():
    x, _, layer = layer_of(Case("2:8", shape=(3,)))
    with torch.no_grad():
        program = torch.export.export(layer, (x,))
        torch.testing.assert_close(program.module()(x), layer(x))
        whole = torch.compile(layer, backend="eager", fullgraph=True)
        torch.testing.assert_close(whole(x), layer(x))
    targets = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert targets == [torch.ops.nmlearn.decode_linear.default]


@pytest.mark.parametrize("shape", [(3,), (70,), (2, 2)])
def test_decode_operator_is_well_behaved(shape):
    x, _, layer = layer_of(Case("1:8", shape=shape))
    arguments = (x, layer.values, layer.index, layer.bias, 1, 8, 37)
    torch.library.opcheck(torch.ops.nmlearn.decode_linear.default, arguments)


def test_decode_refuses():
    x, _, layer = layer_of(Case("2:8"))
    for wrong, what in ((x[:, :-8], "input channels"), (x.half(), "weight is torch.float32"), (x[0, 0], "channels")):
        with pytest.raises(KernelError, match=what):
            layer(wrong)
    with pytest.raises(KernelError, match="inference"):
        layer(x.requires_grad_())
    with pytest.raises(KernelError, match=r"triton_decode\.unpack"):
        triton_decode.unpack(layer.values, layer.index, Pattern("2:8"), 37, 88 + 64)


def weight_of_2_4(outputs, inputs):
    w_gm = torch.randn(outputs, inputs // 4, 4)
    keep = torch.zeros_like(w_gm).scatter(-1, torch.rand_like(w_gm).topk(2, -1).indices, 1.0)
    return (w_gm * keep).flatten(1).to(torch.bfloat16)


def test_semi_structured_weight_is_plain_buffers(cutlass):
    weight, bias, x = weight_of_2_4(32, 64), torch.randn(32).bfloat16(), torch.randn(2, 3, 64).bfloat16()
    layer = SemiStructuredLinear(weight, bias, backend="cutlass")
    expected = F.linear(x, weight, bias)
    assert set(layer.state_dict()) == {"values", "meta", "bias"}
    assert all(type(value) is torch.Tensor for value in layer.state_dict().values())
    assert layer.weight_bytes() == 32 * 64 + 32 * 64 // 8
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    other = SemiStructuredLinear(torch.zeros_like(weight), bias, backend="cutlass")
    other.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    for same in (layer, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), other, layer.to(torch.bfloat16)):
        torch.testing.assert_close(same(x), expected)


def test_semi_structured_operator(cutlass):
    layer = SemiStructuredLinear(weight_of_2_4(32, 64), None, backend="cutlass")
    arguments = (torch.randn(5, 64).bfloat16(), layer.values, layer.meta, None, 32, "cutlass", 0)
    torch.library.opcheck(torch.ops.nmlearn.semi_structured_linear.default, arguments)
    with torch.no_grad():
        program = torch.export.export(layer, (arguments[0],))
    targets = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert targets == [torch.ops.nmlearn.semi_structured_linear.default]


@pytest.mark.parametrize("stride", [(1, 1), (2, 1)])
def test_semi_structured_convolution(cutlass, stride):
    weight, x = weight_of_2_4(32, 64)[:, :, None, None], torch.randn(2, 64, 5, 6).bfloat16()
    layer = SemiStructuredConv2d(weight, None, stride=stride, backend="cutlass")
    out = layer(x)
    assert out.is_contiguous(memory_format=torch.channels_last)
    expected = F.conv2d(x.float(), weight.float(), None, stride)
    torch.testing.assert_close(out.float(), expected, rtol=2e-2, atol=5e-2)
    with pytest.raises(KernelError, match="batch, 64"):
        layer(x[0])
    with pytest.raises(KernelError, match="1x1"):
        SemiStructuredConv2d(torch.zeros(32, 64, 3, 3), None)


def test_semi_structured_refuses(cutlass):
    layer = SemiStructuredLinear(weight_of_2_4(32, 64), None, backend="cutlass")
    with pytest.raises(KernelError, match="keeps its dtype"):
        layer.float()
    with pytest.raises(KernelError, match="input channels"):
        layer(torch.zeros(2, 32).bfloat16())
    with pytest.raises(KernelError, match="inference"):
        layer(torch.zeros(2, 64).bfloat16().requires_grad_())


def test_semi_structured_off_a_gpu_is_an_error():
    with pytest.raises(KernelError, match="not on an NVIDIA GPU"):
        SemiStructuredLinear(weight_of_2_4(32, 64), None)


def test_semi_structured_is_not_saved_as_a_dense_layer(cutlass, tmp_path):
    layer = SemiStructuredLinear(weight_of_2_4(32, 64), None, backend="cutlass")
    with pytest.raises(StateError, match=r"0\.weight.*order of its own; save the model before accelerating it"):
        nm.save(torch.nn.Sequential(layer), tmp_path / "m.safetensors")
    assert not list(tmp_path.iterdir())
