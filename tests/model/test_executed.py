"""What models begin and end with, seen on an example, which leaves nothing behind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import executed_nets as nets
from executed_nets import conv, image
from nets import snapshot
from nmlearn.errors import ConfigError
from nmlearn.model.executed import execute
from nmlearn.model.found import find

X, Z, IDS = torch.randn(2, 6), torch.randn(2, 16), torch.arange(6).view(1, 6)


def ends(model: nn.Module, example: Any) -> tuple[set[str], set[str]]:
    """What begins a model and what ends it."""
    seen = execute(model, list(find(model)), example)
    assert seen.last is not None
    return tuple({name.removesuffix(".weight") for name in some} for some in (seen.first, seen.last))


def last(model: nn.Module, example: Any) -> set[str]:
    return ends(model, example)[1]


@pytest.mark.parametrize(
    ("model", "example", "first", "expected"),
    [
        (nets.UNet(), (image(), torch.randn(2, 4)), {"into", "time"}, {"out"}),
        (nets.Segmentation(), image(), {"stem"}, {"main.3", "aux.2"}),
        (nets.Generator(), Z, {"latent"}, {"pixels"}),
        (nets.SuperResolution(), image(), {"head"}, {"tail"}),
        (nets.AllConvolutional(), {"x": image()}, {"body.0"}, {"classes"}),
        (nets.Detector(), ([*image()],), {"levels.0"}, {"boxes", "scores"}),
        (nets.Proposing(), X, {"body"}, {"objectness", "deltas", "cls_score", "bbox_pred"}),
        (nets.Language(), IDS, {"table"}, {"head"}),
        (nets.Language(), {"ids": IDS, "labels": IDS}, {"table"}, {"head"}),
        (nets.Language(), {"ids": IDS, "states": True}, {"table"}, {"head"}),
        (nets.Language("layer"), IDS, {"head"}, {"head"}),  # one weight, by its first name
        (nets.Language("code"), IDS, {"table"}, {"table"}),
        (nets.Pooling(), IDS, {"table"}, {"pooler"}),
        (nets.Pooling(pools=False), IDS, {"table"}, {"encoder.layers.1.linear2"}),
        (nets.encoder(), torch.randn(1, 5, 8), {"layers.0.self_attn.in_proj_weight"}, {"layers.1.linear2"}),
        (nn.MultiheadAttention(8, 2), (torch.randn(5, 1, 8),) * 3, {"in_proj_weight"}, {"in_proj_weight"}),
        (nets.TwoHeads(), X, {"body"}, {"heads.0.2", "heads.1.2"}),
        (nets.Routed(), X, {"gate", "experts.0", "experts.1"}, {"gate", "head"}),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_what_begins_and_ends_a_model(model: nn.Module, example: Any, first: set[str], expected: set[str]) -> None:
    assert ends(model, example) == (first, expected)
    assert ends(model.train(False), example) == (first, expected)


def test_an_output_that_is_the_next_input_ends_the_model_at_the_last_step() -> None:
    assert last(nets.Forecast(), torch.randn(2, 4)) == {"out"}


class Calls(nn.Module):
    """Two layers, and what a function makes of them."""

    def __init__(self, function: Any, a: nn.Module | None = None, b: nn.Module | None = None) -> None:
        super().__init__()
        self.a, self.b, self.function = a or nn.Linear(6, 6), b or nn.Linear(6, 6), function

    def forward(self, x: Tensor) -> Any:
        return self.function(self.a, self.b, x)


def _in_place(a: nn.Module, b: nn.Module, x: Tensor) -> Tensor:
    y = a(x)
    return y.add_(b(y))


def _out(a: nn.Module, b: nn.Module, x: Tensor) -> Tensor:
    y = torch.empty_like(x)
    torch.add(a(x), b(x), out=y)
    return y


def _forces(a: nn.Module, b: nn.Module, x: Tensor) -> Any:
    """The derivative of an energy: backward multiplies with the weights too."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        energy = b(a(x).tanh()).sum()
        return energy, torch.autograd.grad(energy, x)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda a, b, x: b(a(x)), {"b"}),
        (lambda a, b, x: (a(x), b(x)), {"a", "b"}),
        (lambda a, b, x: a(x) + b(x), {"a", "b"}),
        (lambda a, b, x: F.linear(a(x), b.weight), {"b"}),
        (lambda a, b, x: a(x) @ F.normalize(b.weight).T, {"b"}),
        (lambda a, b, x: a(x).bfloat16() @ b.weight.bfloat16(), {"b"}),
        (lambda a, b, x: torch.einsum("bi,oi->bo", a(x), b.weight), {"b"}),
        (lambda a, b, x: b(torch.zeros_like(a(x))), {"b"}),
        (lambda a, b, x: (a(x), b(torch.zeros_like(a(x)))), {"a", "b"}),
        (lambda a, b, x: b((a(x) > 0).float()), {"a", "b"}),  # a choice, as an answer may be
        (lambda a, b, x: torch.utils.checkpoint.checkpoint(lambda y: b(a(y)), x, use_reentrant=False), {"b"}),
        (lambda a, b, x: torch.nn.utils.rnn.pack_sequence([*b(a(x))]), {"b"}),
        (lambda a, b, x: b(a(x).to_sparse().to_dense()), {"b"}),
        (_in_place, {"b"}),
        (_out, {"a", "b"}),
        (_forces, {"b"}),
    ],
)
def test_flows(function: Any, expected: set[str]) -> None:
    assert last(Calls(function), X) == expected


@pytest.mark.parametrize(
    "function",
    [
        lambda a, b, x: b(torch.from_numpy(a(x).numpy())),
        lambda a, b, x: torch.func.vmap(lambda row: b(a(row)))(x),  # hooks are given tensors without a storage
    ],
)
def test_what_is_given_unknown_tensors_begins_nothing(function: Any) -> None:
    assert ends(Calls(function), X) == ({"a"}, {"b"})


class Standardized(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight - self.weight.mean((1, 2, 3), keepdim=True))


@pytest.mark.filterwarnings("ignore:.*spectral_norm:FutureWarning", "ignore:.*spectral_norm:DeprecationWarning")
def test_layers_with_computed_weights_are_layers() -> None:
    model = nn.Sequential(conv(3), nn.utils.spectral_norm(conv()), Standardized(8, 8, 3), conv())
    nn.utils.parametrizations.weight_norm(model[0])
    assert last(model, image()) == {"3"}
    assert last(model[:3], image()) == {"2"}
    assert last(model[:2], image()) == {"1.weight_orig"}


def test_weights_in_one_storage_are_told_apart_by_their_layers() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    flat = torch.randn(2, 6, 6)
    for layer, weight in zip(model, flat, strict=True):
        layer.weight = nn.Parameter(weight)
    assert ends(model, X) == ({"0"}, {"1"})


def test_compiled_parts_run_as_they_were_written() -> None:
    model = nets.TwoHeads()
    model.heads[0].compile(backend="eager")
    assert last(torch.compile(model, backend="eager"), X) == {"heads.0.2", "heads.1.2"}


def test_models_on_the_meta_device() -> None:
    model = nets.UNet().to("meta")
    assert last(model, (image().to("meta"), torch.empty(2, 4, device="meta"))) == {"out"}


def test_where_no_layer_reaches_the_output_none_is_said_to() -> None:
    model = Calls(lambda a, b, x: torch.from_numpy(b(a(x)).numpy()))
    assert execute(model, list(find(model)), X).last is None


# What it leaves


class Careless(nn.Module):
    """Counts its calls and collects statistics in evaluation too, with operators that say so and one that does not."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 2)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("wide", torch.zeros(1).expand(4))
        self.register_buffer("none", None)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.register_buffer("new", x.mean())
        self.wide = self.wide + 1
        x = F.batch_norm(self.first(x), self.norm.running_mean, self.norm.running_var, training=True)
        return self.last(F.dropout(self.norm(x) + torch.randn_like(x), 0.5, training=True))


def state_of(model: nn.Module) -> Any:
    hooks = [sum(len(hooks) for name, hooks in vars(m).items() if name.endswith("_hooks")) for m in model.modules()]
    named = {name: (id(buffer), buffer._version) for name, buffer in model.named_buffers()}
    return hooks, named, [m.training for m in model.modules()], torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_left_behind(fails: bool) -> None:
    model = nn.Sequential(Careless(), nn.Linear(3 if fails else 2, 2))
    model[0].norm.eval()
    before, tensors, rng = state_of(model), snapshot(model), torch.get_rng_state()
    if fails:
        with pytest.raises(ConfigError):
            last(model, X)
    else:
        assert last(model, X) == {"1"}
    assert state_of(model) == before
    assert all(torch.equal(tensors[name], tensor) for name, tensor in snapshot(model).items())
    assert snapshot(model).keys() == tensors.keys()
    assert torch.equal(torch.get_rng_state(), rng)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_nothing_is_left_behind_on_a_gpu() -> None:
    model = nn.Sequential(Careless(), nn.Linear(2, 2)).cuda()
    tensors, rng = snapshot(model), torch.cuda.get_rng_state()
    assert last(model, X.cuda()) == {"1"}
    assert all(torch.equal(tensors[name], tensor) for name, tensor in snapshot(model).items())
    assert torch.equal(torch.cuda.get_rng_state(), rng)


# What is refused


@pytest.mark.parametrize(
    ("example", "given", "wrong"),
    [
        (torch.randn(2, 5), "float32 [2, 5]", "RuntimeError"),
        ((X, X), "(float32 [2, 6], float32 [2, 6])", "TypeError"),
        ({"y": X}, "{y: float32 [2, 6]}", "TypeError"),
        (iter([X]), "<list_itera", "it is a list_iterator"),
    ],
)
def test_examples_that_the_model_does_not_take(example: Any, given: str, wrong: str) -> None:
    with pytest.raises(ConfigError) as error:
        last(nets.TwoHeads(), example)
    said = error.value
    assert said.where == "example" and said.given.startswith(given) and wrong in said.wrong
    assert "TwoHeads.forward(x: " in said.fix
