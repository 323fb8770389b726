"""The sweep that every registered method goes through. Being in METHODS is what subjects a method to it."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nmlearn as nm
from nets import Layers, batches, convnet, same, sgd, snapshot, train
from nmlearn.errors import ViolationError

PATTERNS = ["2:4", "1:4", "4:8", "1:16"]
STEPS = 16
# What a method does not do, with the reason; anything else must pass.
GAPS = {("dense", "ends_in_pattern"): "dense training masks nothing"}
OPTIONS = {"oneshot": {"at": 0.5}}
methods = pytest.mark.parametrize("name", list(nm.METHODS))


def make(name, pattern):
    return nm.methods.build(name, pattern, **OPTIONS.get(name, {}))


def start(name, pattern, model=None, optimizer=sgd, steps=STEPS):
    """A model under a method; `keep` starts from a model that is sparse already, as it must."""
    model = model or convnet()
    if name == "keep":
        sparsify(model, pattern)
    chosen = optimizer(model)
    return model, chosen, nm.Sparsifier(model, make(name, pattern)).attach(chosen, steps)


def sparsify(model, pattern):
    oneshot = nm.Sparsifier(model, nm.OneShot(pattern)).attach(sgd(model), 1)
    oneshot.finalize()


def groups_kept(sparsifier):
    """The number kept in every group, by weight."""
    rows = {row.name: row for row in sparsifier.plan.taken}
    return {name: rows[name].grouping.view(mask).sum(-1) for name, mask in sparsifier.masks().items()}


def fits(sparsifier, model):
    weights = dict(model.named_parameters())
    return all(
        bool((row.grouping.view(weights[row.name] != 0).sum(-1) <= row.pattern.n).all())
        for row in sparsifier.plan.taken
    )


@methods
@pytest.mark.parametrize("pattern", PATTERNS)
def test_ends_in_exactly_the_pattern(name, pattern):
    """Linear, Conv2d and grouped convolution; every group keeps exactly N when all its weights are worth something."""
    model, optimizer, sparsifier = start(name, pattern)
    train(model, optimizer, batches(STEPS))
    if (name, "ends_in_pattern") in GAPS:
        assert not fits(sparsifier, model)
        return sparsifier.finalize()
    n = nm.Pattern(pattern).n
    assert {row.kind for row in sparsifier.plan.taken} == {"Conv2d", "Linear"} and len(sparsifier.plan.taken) == 3
    assert all(bool((kept == n).all()) for kept in groups_kept(sparsifier).values())
    assert fits(sparsifier, model)
    sparsifier.finalize()
    assert sparsifier.state_bytes() == 0 and fits(sparsifier, model)


@methods
def test_every_kind_of_layer_ends_in_the_pattern(name):
    torch.manual_seed(0)
    model, optimizer, sparsifier = start(name, "2:4", Layers())
    train(model, optimizer, batches(STEPS, shape=(3, 8)))
    kinds = {row.kind for row in sparsifier.plan.taken}
    linear = "NonDynamicallyQuantizableLinear"
    assert kinds == {"Conv1d", "ConvTranspose1d", "Conv3d", "MultiheadAttention", linear, "LSTM"}
    if (name, "ends_in_pattern") not in GAPS:
        assert all(bool((kept == 2).all()) for kept in groups_kept(sparsifier).values())
    sparsifier.finalize()


@methods
def test_a_removed_weight_stays_removed_and_its_gradient_is_zero(name):
    """After every step, with momentum: off is +0.0, and nobody sees a gradient there."""
    model, optimizer, sparsifier = start(name, "1:4")
    for x, y in batches(STEPS):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        masks = sparsifier.masks()
        for key, p in model.named_parameters():
            if key in masks and not type(sparsifier.method).dense_gradient:
                assert not p.grad[~masks[key]].any()
        optimizer.step()
        for key, mask in sparsifier.masks().items():
            off = model.get_parameter(key).detach()[~mask]
            assert not off.any() and not torch.signbit(off).any()


@methods
@pytest.mark.parametrize("pattern", ["2:4", "8:16"])
@pytest.mark.parametrize("stop", [0, 3, 8, 13])
def test_resuming_is_bit_equal(name, pattern, stop, tmp_path):
    """Killed after `stop` steps, also mid-schedule; through a file that holds no code."""
    data = batches(STEPS)
    model, optimizer, uninterrupted = start(name, pattern)
    first = snapshot(model)
    train(model, optimizer, data)
    final = uninterrupted.state_dict()

    again, optimizer, sparsifier = start(name, pattern)
    assert same(first, snapshot(again))
    train(again, optimizer, data[:stop])
    parts = {"model": again.state_dict(), "optimizer": optimizer.state_dict(), "nm": sparsifier.state_dict()}
    torch.save(parts, tmp_path / "last.pt")
    del again, optimizer, sparsifier

    parts = torch.load(tmp_path / "last.pt", weights_only=True)
    resumed = convnet(seed=99)
    resumed.load_state_dict(parts["model"])
    optimizer = sgd(resumed)
    sparsifier = nm.Sparsifier(resumed, make(name, pattern)).attach(optimizer, STEPS)
    resumed.load_state_dict(parts["model"])
    optimizer.load_state_dict(parts["optimizer"])
    sparsifier.load_state_dict(parts["nm"])
    assert sparsifier.step == stop
    train(resumed, optimizer, data[stop:])
    assert same(snapshot(model), snapshot(resumed))
    for key, entry in sparsifier.state_dict()["weights"].items():
        assert same(entry["state"], final["weights"][key]["state"]) and entry["value"] == final["weights"][key]["value"]


@methods
def test_channels_last_is_the_same_method(name):
    data, weights = batches(STEPS, dtype=torch.float64), []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        model, optimizer, _ = start(name, "2:4", convnet().double().to(memory_format=memory_format))
        train(model, optimizer, [(x.to(memory_format=memory_format), y) for x, y in data])
        assert model.conv.weight.is_contiguous(memory_format=memory_format)
        weights.append(snapshot(model))
    for key, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][key], rtol=0, atol=1e-9)


@methods
def test_bf16_weights(name):
    model, optimizer, sparsifier = start(name, "2:4", convnet().bfloat16())
    train(model, optimizer, [(x.bfloat16(), y) for x, y in batches(STEPS)])
    if (name, "ends_in_pattern") not in GAPS:
        assert fits(sparsifier, model)
    for taken in sparsifier._taken:
        assert all(t.dtype != torch.bfloat16 for key, t in taken.state.items() if key != "dense")
    sparsifier.finalize()


@methods
def test_groups_of_zeros_and_ties(name):
    model = convnet()
    with torch.no_grad():
        model.hidden.weight.zero_()
        model.conv.weight.fill_(0.01)
    model, optimizer, sparsifier = start(name, "2:4", model)
    train(model, optimizer, batches(STEPS))
    sparsifier.finalize()


@methods
def test_an_average_is_brought_into_the_pattern(name):
    model, optimizer, sparsifier = start(name, "2:4")
    ema = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
    train(model, optimizer, batches(STEPS), after=lambda _: ema.update_parameters(model))
    late = copy.deepcopy(ema)
    sparsifier.finalize(ema)
    sparsifier.finalize()
    sparsifier.finalize(late)
    if (name, "ends_in_pattern") not in GAPS:
        assert fits(sparsifier, ema.module) and fits(sparsifier, late.module)
    assert same(snapshot(ema), snapshot(late))


@methods
def test_the_model_stays_plain(name):
    model, optimizer, _ = start(name, "2:4")
    keys = list(convnet().state_dict())
    train(model, optimizer, batches(4))
    assert list(model.state_dict()) == keys and type(model.conv.weight) is nn.Parameter
    twin = copy.deepcopy(model)
    x = batches(1)[0][0]
    assert torch.equal(twin.eval()(x), model.eval()(x))
    twin.conv.weight.data.fill_(1.0)  # the copy is free of the sparsifier
    train(twin.train(), sgd(twin), batches(2))
    assert bool((twin.conv.weight != 0).all())


@methods
def test_only_dense_training_and_finished_schedules_pass_the_last_check(name):
    model, optimizer, sparsifier = start(name, "2:4")
    train(model, optimizer, batches(2))
    with torch.no_grad():
        model.hidden.weight.fill_(1.0)
    if (name, "ends_in_pattern") in GAPS:
        return sparsifier.finalize()
    with pytest.raises(ViolationError, match=r"hidden.weight +256 of 256 groups break 2:4; the first is \[0, 0:4\]"):
        sparsifier.finalize()
    assert sparsifier.state_bytes() > 0  # nothing was detached


@methods
@pytest.mark.slow
def test_torch_compile_never_recompiles(name):
    torch._dynamo.reset()
    model, optimizer, sparsifier = start(name, "2:4")
    compiled, data = torch.compile(model), batches(STEPS)
    train(compiled, optimizer, data[:2])
    with torch._dynamo.config.patch(error_on_recompile=True):
        train(compiled, optimizer, data[2:])
    sparsifier.finalize()
