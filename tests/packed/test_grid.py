"""Layers by types by ways of calling: as the dense layer, or refused by name. No other error, no other numbers."""

import copy
import io
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import operands
from nmlearn.errors import NMLearnError
from nmlearn.packed.modules import PackedConv2d

Call = operands.Call
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int32, torch.complex64, torch.float8_e5m2]
LAYERS: dict[str, Callable[[torch.dtype], Call]] = {
    "one token": lambda d: operands.linear("2:4", "rows", size=(1,), dtype=d),
    "7 tokens": lambda d: operands.linear("1:4", "tokens", size=(7,), dtype=d, activation="gelu"),
    "64 tokens": lambda d: operands.linear("4:8", "rows", size=(8, 8), dtype=d, activation="silu"),
    "bytes": lambda d: operands.linear("1:8", "bytes", size=(11,), dtype=d, activation="relu"),
    "1x1 bytes": lambda d: operands.conv("2:4", "bytes", (1, 1), dtype=d),
    "no tokens": lambda d: operands.linear("2:4", "tokens", size=(0,), dtype=d),
    "1x1": lambda d: operands.conv("2:4", "rows", (1, 1), dtype=d),
    "3x3": lambda d: operands.conv("1:4", "tokens", padding=(1, 1), dtype=d, activation="relu"),
    "strides": lambda d: operands.conv("2:4", "rows", image=(9, 5), stride=(2, 3), padding=(0, 2), dtype=d),
    "dilation": lambda d: operands.conv("2:4", "tokens", image=(9, 11), dilation=(2, 3), dtype=d, first=True),
    "groups": lambda d: operands.conv("2:8", "rows", (2, 3), rows=5, groups=3, dtype=d),
}


def saved(call: Call) -> Call:
    """Through pickle, as torch.save does it."""
    file = io.BytesIO()
    torch.save(call.layer, file)
    file.seek(0)
    call.layer = torch.load(file, weights_only=False)
    return call


def with_x(change: Callable[[Tensor], Tensor]) -> Callable[[Call], Tensor]:
    """Called with an input of the same numbers."""

    def way(call: Call) -> Tensor:
        x = change(call.x)
        y: Tensor = call.layer(x, call.residual)
        return y

    return way


def holes(x: Tensor) -> Tensor:
    """In memory with gaps."""
    return torch.stack([x, x], -1)[..., 0]


def turned(x: Tensor) -> Tensor:
    return x.mT.contiguous().mT if x.dim() > 1 else x


def as_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last if x.dim() == 4 else torch.contiguous_format)


def in_mode(mode: Callable[[], torch.autograd.grad_mode._DecoratorContextManager]) -> Callable[[Call], Tensor]:
    def way(call: Call) -> Tensor:
        with mode():  # type: ignore[attr-defined]
            return call.packed()

    return way


def without_gradient_of_residual(call: Call) -> Tensor:
    assert call.residual is not None
    call.residual.requires_grad_()
    with torch.no_grad():
        y = call.packed()
    call.residual.requires_grad_(False)
    return y


def functional(call: Call) -> Tensor:
    buffers = {name: buffer.clone() for name, buffer in call.layer.named_buffers()}
    y: Tensor = torch.func.functional_call(call.layer, buffers, (call.x, call.residual))
    return y


def mapped(call: Call) -> Tensor:
    residual = call.residual
    assert residual is not None
    twice = [torch.stack([t, t]) for t in (call.x, residual)]
    torch._C._functorch._set_vmap_fallback_warning_enabled(False)  # that it maps one by one
    y: Tensor = torch.func.vmap(call.layer)(*twice)
    torch._C._functorch._set_vmap_fallback_warning_enabled(True)
    assert torch.equal(y[0], y[1])
    return y[0]


WAYS: dict[str, Callable[[Call], Tensor]] = {
    "plain": Call.packed,
    "no_grad": in_mode(torch.no_grad),
    "inference_mode": in_mode(torch.inference_mode),
    "meta is the default": in_mode(lambda: torch.device("meta")),  # type: ignore[arg-type, return-value]
    "residual with a gradient": without_gradient_of_residual,
    "deepcopy": lambda call: copy.deepcopy(call.layer)(call.x, call.residual),  # type: ignore[no-any-return]
    "saved": lambda call: saved(call).packed(),
    "functional_call": functional,
    "vmap": mapped,
    "contiguous": with_x(Tensor.contiguous),
    "channels_last": with_x(as_last),
    "turned": with_x(turned),
    "holes": with_x(holes),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("called", [False, True])
def test_as_dense_or_refused(name: str, dtype: torch.dtype, called: bool) -> None:
    known = dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64)
    for way in WAYS.values():
        call = LAYERS[name](dtype if known else torch.float32)
        for _ in range(2 * called):
            call.packed()
        if known:
            way_of = Call(call.layer, call.weight, call.x, call.residual, call.options)
            call.packed = lambda way=way, c=way_of: way(c).detach()  # type: ignore[method-assign]
            call.check(4)
        else:
            call.x = call.x.to(dtype)
            with pytest.raises(NMLearnError):
                way(call)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta:UserWarning")
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("called", [False, True])
def test_what_is_no_input(name: str, called: bool) -> None:
    call = LAYERS[name](torch.float32)
    for _ in range(2 * called):
        call.packed()
    x, residual = call.x, call.residual
    jagged = torch.nested.nested_tensor([torch.randn(2, 36), torch.randn(3, 36)], layout=torch.jagged)
    strange = [None, 1.0, [1.0], torch.tensor(1.0), x.to("meta"), x.to_sparse(), jagged, x[..., :-1], x.flatten()]
    if x.dim() == 2:
        strange.append(x.to_sparse_csr())
    for given in strange:
        with pytest.raises(NMLearnError):
            call.layer(given, residual)
    for given in (1.0, [1.0], residual.to("meta"), residual.to_sparse(), torch.zeros(3)):  # type: ignore[union-attr]
        with pytest.raises(NMLearnError):
            call.layer(x, given)
    for transform in (torch.func.jacfwd, torch.func.jacrev, lambda f: torch.func.grad(lambda x: f(x).sum())):
        with pytest.raises(NMLearnError, match=r"derivative|gradient"):
            transform(lambda x: call.layer(x, residual))(x)
    call.layer.values = None  # type: ignore[assignment]
    with pytest.raises(NMLearnError, match="values"):
        call.packed()


def test_settings_that_are_no_settings() -> None:
    call = operands.conv("2:4", "rows", residual=False)
    call.packed()
    for name, values in {"activation": (None, 3, ["relu"]), "layout": (None, 3), "padding": ("same", 2**70)}.items():
        for value in values:
            with pytest.raises(NMLearnError):
                setattr(call.layer, name, value)
    assert isinstance(call.layer, PackedConv2d)
    call.layer.padding = 2**31 - 1  # type: ignore[assignment]
    for x in (call.x, call.x[:0]):
        with pytest.raises(NMLearnError, match="no memory"):
            call.layer(x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_index_that_names_no_input(dtype: torch.dtype) -> None:
    """The compiled kernels read nothing outside (not compared here); unpacking refuses it."""
    layer = operands.linear("2:4", "tokens", dtype=dtype).layer
    layer.index.fill_(255)
    with pytest.raises(NMLearnError, match="index: given input 255"):
        layer.dense_weight()
