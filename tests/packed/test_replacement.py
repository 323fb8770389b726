"""Every kind of packed layer as the dense layer whose place it takes: its attributes, and what other libraries save."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

import operands
from nmlearn.errors import KernelError, StateError
from nmlearn.packed.gpu_modules import DecodeLinear, SemiStructured, SemiStructuredConv2d, SemiStructuredLinear
from nmlearn.packed.modules import Packed, PackedConv2d, PackedLinear
from nmlearn.packed.replacement import Replacement


def sparse(layer: nn.Linear | nn.Conv2d, dtype: torch.dtype = torch.float32) -> nn.Linear | nn.Conv2d:
    layer.weight.data = operands.sparse(tuple(layer.weight.shape), "2:4")
    return layer.to(dtype).requires_grad_(False)


def linear(bias: bool = True) -> nn.Linear | nn.Conv2d:
    return sparse(nn.Linear(64, 32, bias=bias))


def conv() -> nn.Linear | nn.Conv2d:
    return sparse(nn.Conv2d(16, 8, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=2))


PLACES = ("stride", "padding", "dilation", "groups")
# Of each kind the dense layer, and what takes its place.
KINDS: dict[str, tuple[Callable[[], nn.Linear | nn.Conv2d], Callable[..., Replacement]]] = {
    "PackedLinear": (linear, lambda d: PackedLinear(d.weight, d.bias, "2:4")),
    "PackedLinear without bias": (lambda: linear(bias=False), lambda d: PackedLinear(d.weight, None, "2:4")),
    "PackedLinear in int8": (linear, lambda d: PackedLinear(d.weight, d.bias, "2:4", int8=True)),
    "PackedConv2d": (
        conv,
        lambda d: PackedConv2d(d.weight, d.bias, "2:4", layout="tokens", **{key: getattr(d, key) for key in PLACES}),
    ),
    "DecodeLinear": (linear, lambda d: DecodeLinear(d.weight, d.bias, "2:4")),
    "SemiStructuredLinear": (
        lambda: sparse(nn.Linear(64, 32), torch.bfloat16),
        lambda d: SemiStructuredLinear(d.weight, d.bias, backend="cutlass"),
    ),
    "SemiStructuredConv2d": (
        lambda: sparse(nn.Conv2d(64, 32, 1, stride=(2, 1)), torch.bfloat16),
        lambda d: SemiStructuredConv2d(d.weight, d.bias, stride=d.stride, backend="cutlass"),
    ),
}
NOT_RECOVERABLE = ("PackedLinear in int8", "SemiStructuredLinear", "SemiStructuredConv2d")


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, cutlass: None) -> tuple[str, nn.Module, Replacement]:
    made, replace = KINDS[request.param]
    dense = made()
    return request.param, dense, replace(dense)


def leaves(base: type) -> set[str]:
    return {name for kind in base.__subclasses__() for name in leaves(kind)} or {base.__name__}


def test_no_kind_is_missing() -> None:
    assert {name.partition(" ")[0] for name in KINDS} == leaves(Replacement)
    assert issubclass(Packed, Replacement) and issubclass(SemiStructured, Replacement)


def public(layer: nn.Module) -> set[str]:
    return {name for name in dir(layer) if not name.startswith("_")} - set(dir(nn.Module()))


def test_every_public_attribute_is_the_dense_layers(kind: tuple[str, nn.Module, Replacement]) -> None:
    of, dense, layer = kind
    names = public(dense) - {"reset_parameters"}  # which begins to train
    assert {"weight", "bias"} < names and len(names) >= 4
    for name in names - ({"weight"} if of in NOT_RECOVERABLE else set()):
        assert equal(getattr(layer, name), getattr(dense, name)), name
    if of == "PackedLinear in int8":  # what it computes with
        torch.testing.assert_close(layer.weight, dense.weight, rtol=0, atol=float(dense.weight.abs().max()) / 200)
    elif of in NOT_RECOVERABLE:
        assert not hasattr(layer, "weight")


def equal(a: object, b: object) -> bool:
    return torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else type(a) is type(b) and a == b


def test_its_weight_cannot_be_set(kind: tuple[str, nn.Module, Replacement]) -> None:
    """As what ties weights would: the layer would not compute with it."""
    _, dense, layer = kind
    before = dict(layer.named_buffers())
    with pytest.raises(KernelError, match=r"its weight is packed.*then accelerate it again"):
        layer.weight = dense.weight
    assert not list(layer.parameters()) and dict(layer.named_buffers()).keys() == before.keys()


def library(name: str, *functions: str) -> ModuleType:
    """A library with functions by these names, which give a model's state; each calls the next one."""
    module = ModuleType(name)
    for function, then in zip(functions, [*(f"{f}(model)" for f in functions[1:]), "model.state_dict()"], strict=True):
        exec(f"def {function}(model): return {then}", vars(module))
    return module


@pytest.mark.parametrize("name", ["transformers.modeling_utils", "huggingface_hub.hub_mixin", "diffusers"])
def test_libraries_save_the_dense_layer_or_nothing(name: str, kind: tuple[str, nn.Module, Replacement]) -> None:
    of, dense, layer = kind
    model = nn.Sequential(layer)
    if of in NOT_RECOVERABLE:
        with pytest.raises(StateError, match="save the model before accelerating it") as caught:
            library(name, "save_pretrained").save_pretrained(model)
        assert caught.value.where == "0.weight"
        return
    state: dict[str, Tensor] = library(name, "save_pretrained").save_pretrained(model)
    assert state.keys() == nn.Sequential(dense).state_dict().keys()
    assert all(torch.equal(state[f"0.{key}"], tensor) for key, tensor in dense.state_dict().items())


@pytest.mark.parametrize(
    ("name", "functions"),
    [("mine", ["save_pretrained"]), ("mine.transformers", ["save_pretrained"]), ("transformers", ["save"]),
     ("accelerate.accelerator", ["save_state", "get_state_dict"])],
)  # fmt: skip
def test_others_get_the_packed_buffers(
    name: str, functions: list[str], kind: tuple[str, nn.Module, Replacement]
) -> None:
    _, _, layer = kind
    state: dict[str, Tensor] = getattr(library(name, *functions), functions[0])(layer)
    assert state.keys() == dict(layer.named_buffers()).keys() and "values" in state
