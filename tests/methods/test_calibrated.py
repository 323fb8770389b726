"""Methods that choose the mask from calibration data: errors on real layers, layouts, what they refuse."""

from __future__ import annotations

import dataclasses
import time

import pytest
import torch
from torch import nn

import nmlearn as nm
from calibrated import Layer, layers, rows_of_inputs, weight_of
from nets import batches, convnet, sgd, train
from nmlearn.errors import AttachError, ConfigError, DataError
from nmlearn.maths import masks
from nmlearn.maths.inputs import Inputs, to_rows

KINDS = [kind for kind in nm.METHODS.values() if kind("2:4").needs != "nothing"]
REFITTED = [*KINDS, nm.OneShot]
SOLVERS = [nm.SparseGPT, nm.ALPS]
kinds = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
refitted = pytest.mark.parametrize("kind", REFITTED, ids=lambda kind: kind.name)


def error(layer: Layer, method: nm.Method) -> float:
    """Of what the network computes with: the weight under its mask."""
    weight, state = layer.applied(method)
    return layer.error(masks.clear_(weight, state[masks.KEEP]))


def linear(out: int, columns: int, tokens: int = 300, seed: int = 0, axis: int = 1, pattern: str = "2:4") -> Layer:
    """A weight of noise, and correlated inputs."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, columns, generator=g).double() @ torch.randn(columns, columns, generator=g).double()
    weight = torch.randn(out, columns, generator=g).movedim(1, axis).contiguous()
    return Layer("layer.weight", weight, nm.Grouping(nm.Pattern(pattern), axis), (x + 1.0)[None])


# Errors on the layers of networks


@pytest.mark.parametrize("network", ["conv", "encoder", "mlp"])
@pytest.mark.parametrize("pattern", ["2:4", "1:4", "4:8"])
def test_no_layer_of_three_networks_has_a_higher_error_than_by_magnitude(network: str, pattern: str) -> None:
    found = layers(network, pattern)
    assert len(found) >= 2
    for layer in found:
        magnitude = error(layer, nm.OneShot(pattern))
        ours = {kind.name: error(layer, kind(pattern)) for kind in SOLVERS}
        ours |= {f"{kind.name} refitted": error(layer, kind(pattern, refit="pcg")) for kind in REFITTED}
        assert {name: value for name, value in ours.items() if not value <= magnitude} == {}, layer.name
        assert ours["alps"] <= ours["sparsegpt"] and ours["alps refitted"] < 0.6 * magnitude


@refitted
def test_a_refit_never_raises_the_error(kind: type[nm.Method]) -> None:
    for layer in layers("conv", "2:4"):
        assert error(layer, kind("2:4", refit="pcg")) <= error(layer, kind("2:4", refit="none"))  # type: ignore[call-arg]


@refitted
def test_with_many_steps_a_refit_is_the_optimum_on_its_support(kind: type[nm.Method]) -> None:
    layer = linear(6, 24, pattern="3:6")
    weight, state = layer.applied(kind("3:6", refit="pcg", refit_steps=300), torch.float64)  # type: ignore[call-arg]
    x, optimum = layer.x_gtk[0], torch.zeros(6, 24, dtype=torch.float64)
    for row, mask in enumerate(state[masks.KEEP] != 0):
        dense = x @ layer.weight[row].double()
        optimum[row, mask] = torch.linalg.lstsq(x[:, mask], dense[:, None], driver="gelsd").solution[:, 0]
    torch.testing.assert_close(weight.double(), optimum, rtol=2e-6, atol=2e-6)  # the weight is float32


def test_wanda_is_best_where_inputs_are_uncorrelated_and_magnitude_where_they_are_alike() -> None:
    layer = linear(16, 32)
    scale = torch.linspace(0.1, 4, 32, dtype=torch.float64)[
        torch.randperm(32, generator=torch.Generator().manual_seed(1))
    ]
    apart = dataclasses.replace(layer, x_gtk=torch.diag(scale)[None])
    ours = error(apart, nm.Wanda("2:4"))
    cost = (layer.weight.double() * scale).square().unflatten(1, (-1, 4)).sort().values
    assert ours == pytest.approx(float(cost[..., :2].sum()), rel=1e-6) and ours < error(apart, nm.OneShot("2:4"))
    alike = dataclasses.replace(layer, x_gtk=torch.eye(32, dtype=torch.float64)[None])
    state, other = alike.applied(nm.Wanda("2:4"))[1], alike.applied(nm.OneShot("2:4"))[1]
    assert torch.equal(state[masks.KEEP], other[masks.KEEP])


@pytest.mark.parametrize("kind", [nm.DSnoT, nm.R2DSnoT], ids=lambda kind: kind.name)
@pytest.mark.parametrize("start", ["wanda", "magnitude"])
def test_exchanges_bring_the_mean_outputs_closer(kind: type, start: str) -> None:
    moved = 0
    for layer in layers("encoder", "4:8"):
        mean = layer.x_gtk.mean(1)
        gaps = {}
        for cycles in (0, 50):
            weight, _ = layer.applied(kind("4:8", start=start, cycles=cycles, threshold=0.01))
            gaps[cycles] = ((layer.rows(weight) - layer.rows(layer.weight)) @ mean[..., None]).abs().squeeze(-1)
        assert bool((gaps[50] <= gaps[0] + 1e-5).all())
        moved += int((gaps[50] < gaps[0] - 1e-3).sum())
    assert moved > 20


@pytest.mark.parametrize("setting", [{"relative": "grow"}, {"start": "ria"}, {"prune_penalty": 10.0}])
def test_what_r2_dsnot_adds_makes_a_difference(setting: dict[str, object]) -> None:
    layer = linear(32, 64, pattern="4:8")
    plain = {"relative": "prune", "prune_penalty": 0.0, "threshold": 0.0}
    one, other = (layer.applied(nm.R2DSnoT("4:8", **plain | more))[1] for more in ({}, setting))  # type: ignore[arg-type]
    assert not torch.equal(one[masks.KEEP], other[masks.KEEP])


# Layouts, and what stands in a weight


@kinds
@pytest.mark.parametrize("refit", ["none", "pcg"])
@pytest.mark.parametrize("pattern", ["1:16", "3:7", "8:16", "4:4"])
def test_every_group_keeps_n_and_pruned_weights_are_positive_zeros(kind: type, refit: str, pattern: str) -> None:
    n, m = map(int, pattern.split(":"))
    layer = linear(5, 20 * m, tokens=40 * m, pattern=pattern)
    weight, state = layer.applied(kind(pattern, refit=refit))
    keep = state[masks.KEEP]
    assert keep.dtype == torch.int8 and bool((layer.grouping.view(keep != 0).sum(-1) == n).all())
    off = weight[keep == 0]
    assert not off.any() and not torch.signbit(off).any()
    solves = kind in SOLVERS or refit == "pcg"
    assert torch.equal(weight[keep != 0], layer.weight[keep != 0]) == (not solves or n == m) or n == m


@kinds
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_convolution_groups_are_layers_of_their_own(kind: type, memory_format: torch.memory_format) -> None:
    layer = next(each for each in layers("conv", "2:4") if each.name == "grouped.weight")
    tensor = layer.weight.clone(memory_format=memory_format)
    whole = weight_of(tensor, layer.grouping, Inputs.of(layer.x_gtk, gram=True))
    keep = kind("2:4").init(whole)[masks.KEEP]
    assert keep.stride() == tensor.stride() and tensor.is_contiguous(memory_format=memory_format)
    if kind is nm.ALPS:  # one penalty serves all of a layer
        return
    for g, half in enumerate(layer.weight.clone().chunk(2)):
        alone = weight_of(half, layer.grouping, Inputs.of(layer.x_gtk[g : g + 1], gram=True))
        assert torch.equal(kind("2:4").init(alone)[masks.KEEP], keep.chunk(2)[g])
        torch.testing.assert_close(half, tensor.chunk(2)[g], rtol=1e-5, atol=1e-6)


@kinds
def test_weights_whose_inputs_come_first(kind: type) -> None:
    """``[in, out]``, as transposed convolutions and the Conv1D of transformers have them."""
    results = []
    for axis in (1, 0):
        layer = linear(8, 32, axis=axis)
        weight, state = layer.applied(kind("2:4"), torch.float64)
        results.append([each.movedim(axis, 1) for each in (weight, state[masks.KEEP])])
    assert torch.equal(results[0][1], results[1][1])
    torch.testing.assert_close(*(weight for weight, _ in results))


@kinds
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes(kind: type, dtype: torch.dtype) -> None:
    """Arithmetic is in float32 at least, and kept weights of a mask keep every bit."""
    layer = linear(8, 64)
    layer.weight = layer.weight.to(dtype) * 1.001
    weight, state = layer.applied(kind("2:4"))
    assert weight.dtype == dtype
    if kind not in SOLVERS:
        assert torch.equal(weight, masks.kept(layer.weight, state[masks.KEEP] != 0))
    assert layer.error(weight) <= 1.3 * error(layer, nm.OneShot("2:4"))


@kinds
@pytest.mark.parametrize("refit", ["none", "pcg"])
def test_dead_inputs_and_lost_weights(kind: type, refit: str) -> None:
    """Weights of dead inputs are kept by magnitude, after all others; there is no NaN."""
    layer = linear(8, 32)
    layer.x_gtk[..., 4:8] = layer.x_gtk[..., 12:14] = 0.0
    layer.weight[0, 20] = torch.nan
    weight, state = layer.applied(kind("2:4", refit=refit))
    keep = state[masks.KEEP] != 0
    assert torch.isfinite(weight).all()
    assert not keep[0, 20] or kind in SOLVERS  # there it counts as 0, and others may lean on it
    dead = layer.weight[:, 4:8].abs()
    assert torch.equal(keep[:, 4:8], masks.top(dead, 2)) or kind is nm.RIA  # which weighs rows and columns, too
    assert not keep[:, 12:14].any()
    layer.x_gtk.zero_()
    assert torch.isfinite(layer.applied(kind("2:4", refit=refit))[0]).all()


def test_fewer_tokens_than_weights() -> None:
    """32 weights a row can give any 10 outputs."""
    layer = linear(8, 64, tokens=10)
    for kind in SOLVERS:
        assert error(layer, kind("2:4")) <= 0.3 * error(layer, nm.OneShot("2:4"))
        assert error(layer, kind("2:4", refit="pcg", refit_steps=50)) <= 1e-6 * error(layer, nm.OneShot("2:4"))


# What they refuse, and training on


@refitted
def test_without_calibration_zeros_that_fit_are_the_mask_and_others_are_refused(kind: type) -> None:
    method = kind("2:4", refit="pcg")
    model = convnet()
    with pytest.raises(AttachError, match=r"conv\.weight: .*groups break 2:4.*call sparsifier\.apply\(batches\) first"):
        nm.Sparsifier(model, method).attach(sgd(model), 4)
    nm.Sparsifier(model, nm.OneShot("2:4")).attach(sgd(model), 1).finalize()
    zeros = {name: p.detach() != 0 for name, p in model.named_parameters()}
    optimizer = sgd(model)
    sparsifier = nm.Sparsifier(model, method).attach(optimizer, 4)
    train(model, optimizer, batches(4))
    sparsifier.finalize()
    for row in sparsifier.plan.sparse:
        assert torch.equal(model.get_parameter(row.name) != 0, zeros[row.name])


def test_what_calibration_must_see_follows_from_the_options() -> None:
    needs = {kind.name: (kind("2:4").needs, kind("2:4", refit="pcg").needs) for kind in REFITTED}
    assert needs.pop("oneshot") == ("nothing", "gram")
    assert needs.pop("sparsegpt") == needs.pop("alps") == ("gram", "gram")
    assert set(needs.values()) == {("sums", "gram")}
    assert nm.ALPS("2:4").refit == "pcg" and "refit" not in nm.OneShot("2:4").describe()  # as older states have it


@pytest.mark.parametrize(
    ("method", "inputs", "said"),
    [
        (nm.SparseGPT("2:4"), Inputs.of(torch.ones(1, 3, 8), gram=False), "saw only their sums"),
        (nm.Wanda("2:4", refit="pcg"), Inputs.of(torch.ones(1, 3, 8), gram=False), "wanda needs the products"),
        (nm.Wanda("2:4"), Inputs.of(torch.full((1, 3, 8), torch.inf), gram=False), "not finite"),
    ],
)
def test_too_little_was_seen(method: nm.Method, inputs: Inputs, said: str) -> None:
    weight = torch.ones(4, 8)
    with pytest.raises(DataError, match=f"fc.weight: given 3 inputs: .*{said}"):
        method.init(weight_of(weight, nm.Grouping("2:4", 1), inputs, "fc.weight"))  # type: ignore[arg-type]
    assert bool((weight == 1).all())


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("wanda", {"refit": "adam"}, "write 'none' or 'pcg'"),
        ("wanda", {"refit": "pcg", "refit_steps": 0}, "at least one step"),
        ("oneshot", {"refit": "pcg", "at": 0.5}, "amid training"),
        ("ria", {"power": -1.0}, "large inputs"),
        ("sparsegpt", {"damping": 2.0}, "mean diagonal"),
        ("alps", {"rho": 0.0}, "has to be positive"),
        ("alps", {"rounds": 0}, "has to be positive"),
        ("dsnot", {"start": "alps"}, "write 'wanda' or 'magnitude'"),
        ("dsnot", {"threshold": -1.0}, "cannot be negative"),
        ("r2dsnot", {"relative": "both"}, "write 'prune' or 'grow'"),
        ("r2dsnot", {"norm": -1.0}, "cannot be negative"),
    ],
)
def test_settings_that_make_no_sense(name: str, options: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=f"method.options.*{said}"):
        nm.methods.build(name, "2:4", **options)


@pytest.mark.slow
def test_a_layer_of_a_transformer_takes_sparsegpt_two_seconds_at_most() -> None:
    layer = linear(1536, 384, tokens=1000)
    inputs = Inputs.of(layer.x_gtk.float(), gram=True)
    start = time.perf_counter()
    nm.SparseGPT("2:4").init(weight_of(layer.weight, layer.grouping, inputs))
    assert time.perf_counter() - start < 2


def test_rows_of_a_convolution_multiply_its_patches() -> None:
    """What the layers of this file rest on: the unfolding by hand gives the outputs of the convolution."""
    layer = next(each for each in layers("conv", "2:4") if each.name == "grouped.weight")
    conv = nn.Conv2d(32, 32, 3, groups=2, bias=False)
    x = torch.randn(2, 32, 5, 5, generator=torch.Generator().manual_seed(0))
    rows = to_rows(conv.weight, layer.grouping, 2)
    outputs = rows_of_inputs(conv, x) @ rows.mT  # [G, B x places, O]
    torch.testing.assert_close(outputs.unflatten(1, (2, 9)).permute(1, 0, 3, 2).flatten(1, 2), conv(x).flatten(2))
