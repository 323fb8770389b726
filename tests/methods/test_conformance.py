"""The sweep that every registered method goes through. Being in METHODS is what subjects a method to it."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nmlearn as nm
from calibrated import prepared
from nets import Layers, batches, convnet, same, sgd, snapshot, train
from nmlearn.errors import AttachError, ConfigError, ViolationError

PATTERNS = ["2:4", "1:4", "4:8", "1:16"]
STEPS = 16
# What a method does not do, with the reason; anything else must pass.
GAPS = {
    ("dense", "ends_in_pattern"): "dense training masks nothing",
    ("maskllm", "pruned_at_once"): "its mask is soft until the schedule ends",
    ("maskllm", "8:16"): "a logit for each of 12,870 combinations: refused",
    ("bimask", "compiles"): "a compiled backward pass reads the weight in use: refused",
}
OPTIONS = {
    "oneshot": {"at": 0.5},
    "bimask": {"candidates": 4, "draws": 8},  # a hundred draws of a hundred are slow
    "stepadam": {"eps": 1e-2},  # the rates here are those of SGD
}
methods = pytest.mark.parametrize("name", list(nm.METHODS))


def make(name, pattern):
    return nm.methods.build(name, pattern, **OPTIONS.get(name, {}))


def start(name, pattern, model=None, optimizer=sgd, steps=STEPS):
    """A model under a method; `keep` and those that calibrate start from one that is sparse already, as they must."""
    model = prepared(model or convnet(), make(name, pattern))
    chosen = optimizer(model)
    return model, chosen, nm.Sparsifier(model, make(name, pattern)).attach(chosen, steps)


def groups_kept(sparsifier):
    """The number kept in every group, by weight."""
    rows = {row.name: row for row in sparsifier.plan.sparse}
    return {name: rows[name].grouping.view(mask).sum(-1) for name, mask in sparsifier.masks().items()}


def fits(sparsifier, model):
    weights = dict(model.named_parameters())
    return all(
        bool((row.grouping.view(weights[row.name] != 0).sum(-1) <= row.pattern.n).all())
        for row in sparsifier.plan.sparse
    )


@methods
@pytest.mark.parametrize("pattern", PATTERNS)
def test_ends_in_exactly_the_pattern(name, pattern):
    """Linear, Conv2d and grouped convolution; every group keeps exactly N when all its weights are worth something."""
    model, optimizer, sparsifier = start(name, pattern)
    train(model, optimizer, batches(STEPS))
    if (name, "ends_in_pattern") in GAPS:
        assert not fits(sparsifier, model)
        sparsifier.finalize()
        return
    n = nm.Pattern(pattern).n
    assert {row.kind for row in sparsifier.plan.sparse} == {"Conv2d", "Linear"} and len(sparsifier.plan.sparse) == 3
    assert all(bool((kept == n).all()) for kept in groups_kept(sparsifier).values())
    assert fits(sparsifier, model)
    sparsifier.finalize()
    assert sparsifier.state_bytes() == 0 and fits(sparsifier, model)


@methods
def test_every_kind_of_layer_ends_in_the_pattern(name):
    torch.manual_seed(0)
    model, optimizer, sparsifier = start(name, "2:4", Layers())
    train(model, optimizer, batches(STEPS, shape=(3, 8)))
    kinds = {row.kind for row in sparsifier.plan.sparse}
    linear = "NonDynamicallyQuantizableLinear"
    assert kinds == {"Conv1d", "ConvTranspose1d", "Conv3d", "MultiheadAttention", linear, "LSTM"}
    if (name, "ends_in_pattern") not in GAPS:
        assert all(bool((kept == 2).all()) for kept in groups_kept(sparsifier).values())
    sparsifier.finalize()


@methods
def test_a_removed_weight_stays_removed_and_its_gradient_is_zero(name):
    """After every step, with momentum: off is +0.0, and nobody sees a gradient there."""
    soft = (name, "pruned_at_once") in GAPS
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
            if soft and sparsifier.progress < 1:
                continue
            assert not off.any() and not torch.signbit(off).any()


@methods
@pytest.mark.parametrize("pattern", ["2:4", "8:16"])
@pytest.mark.parametrize("stop", [0, 3, 8, 13])
def test_resuming_is_bit_equal(name, pattern, stop, tmp_path):
    """Killed after `stop` steps, also mid-schedule and with noise drawn; through a file that holds no code."""
    if (name, pattern) in GAPS:
        with pytest.raises(ConfigError, match="combinations"):
            start(name, pattern)
        return
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
def test_what_is_used_is_a_pure_function(name):
    model, optimizer, sparsifier = start(name, "2:4")
    train(model, optimizer, batches(STEPS // 2))
    method, at = sparsifier.method, sparsifier._attached.at()
    for w in sparsifier._weights:
        if method.holds in ("shadow", "frozen"):
            before = {key: tensor.clone() for key, tensor in w.state.items()}
            once, twice = method.used(w.seen(), at), method.used(w.seen(), at)
            assert torch.equal(once, twice) and torch.equal(once.to(w.parameter.dtype), w.parameter.detach())
            assert torch.equal(method.used_back(w.seen(), at), method.used_back(w.seen(), at))
            assert same(before, w.state)


@methods
def test_a_foreign_write_of_the_same_values_changes_nothing(name):
    """Loading the model's own state between steps, as evaluation with an average does when it puts weights back."""
    results = []
    for write in (False, True):
        model, optimizer, sparsifier = start(name, "2:4")
        for batch in batches(STEPS):
            train(model, optimizer, [batch])
            if write:
                model.load_state_dict(copy.deepcopy(model.state_dict()))
        states = {w.name: w.state for w in sparsifier._weights}
        results.append((snapshot(model), states))
    assert same(results[0][0], results[1][0])
    assert all(same(state, results[1][1][key]) for key, state in results[0][1].items())


@methods
def test_two_parameter_groups_are_one(name):
    def grouped(model):
        own = [model.conv.weight, model.head.bias]
        rest = [p for p in model.parameters() if all(p is not other for other in own)]
        return torch.optim.SGD([{"params": own}, {"params": rest}], 0.05, momentum=0.9, weight_decay=1e-3)

    results = []
    for make_optimizer in (sgd, grouped):
        model, optimizer, _ = start(name, "2:4", optimizer=make_optimizer)
        train(model, optimizer, batches(STEPS))
        results.append(snapshot(model))
    assert same(*results)


@methods
def test_accumulated_gradients_are_one_step(name):
    """Two half batches accumulated are the whole batch; batch norm as in evaluation, which couples no examples."""
    results = []
    for halves in (1, 2):
        model, optimizer, sparsifier = start(name, "2:4", convnet().double().eval())
        for x, y in batches(STEPS, dtype=torch.float64):
            optimizer.zero_grad()
            for part_x, part_y in zip(x.chunk(halves), y.chunk(halves), strict=True):
                (F.cross_entropy(model(part_x), part_y) / halves).backward()
            optimizer.step()
        assert sparsifier.step == STEPS
        results.append(snapshot(model))
    for key, value in results[0].items():
        torch.testing.assert_close(value, results[1][key], rtol=0, atol=1e-6)


@methods
def test_steps_that_a_scaler_skips_do_not_count(name):
    model, optimizer, sparsifier = start(name, "2:4")
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    for i, (x, y) in enumerate(batches(STEPS)):
        optimizer.zero_grad()
        scaler.scale(F.cross_entropy(model(x), y)).backward()
        if i == 5:
            model.hidden.weight.grad[0, 0] = torch.inf
        before, states = snapshot(model), copy.deepcopy(sparsifier.state_dict()["weights"])
        scaler.step(optimizer)
        scaler.update()
        if i == 5:
            after = sparsifier.state_dict()["weights"]
            parameters = dict(model.named_parameters())
            assert all(torch.equal(before[key], parameter) for key, parameter in parameters.items())
            assert all(same(states[key]["state"], after[key]["state"]) for key in states)
    assert sparsifier.step == STEPS - 1


@methods
def test_adamw(name):
    def adamw(model):
        return torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.1)

    model, optimizer, sparsifier = start(name, "2:4", optimizer=adamw)
    train(model, optimizer, batches(STEPS))
    if (name, "ends_in_pattern") not in GAPS:
        assert fits(sparsifier, model)
    sparsifier.finalize()


@methods
def test_a_state_is_tensors_text_and_numbers(name):
    model, optimizer, sparsifier = start(name, "2:4")
    train(model, optimizer, batches(STEPS // 2))
    state = sparsifier.state_dict()
    for entry in state["weights"].values():
        assert all(type(t) is torch.Tensor and not t.requires_grad for t in entry["state"].values())
        assert isinstance(entry["value"], int | float | tuple)
    assert all(isinstance(value, int | float | str | list | None) for value in state["options"].values())


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
    for taken in sparsifier._weights:
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
        sparsifier.finalize()
        return
    with pytest.raises(ViolationError, match=r"hidden.weight +256 of 256 groups break 2:4; the first is \[0, 0:4\]"):
        sparsifier.finalize()
    assert sparsifier.state_bytes() > 0  # nothing was detached


@methods
@pytest.mark.slow
def test_torch_compile_never_recompiles(name):
    torch._dynamo.reset()
    model, optimizer, sparsifier = start(name, "2:4")
    compiled, data = torch.compile(model), batches(STEPS)
    if (name, "compiles") in GAPS:
        warnings.simplefilter("ignore")  # dynamo's own, about tensors in hooks
        with pytest.raises(AttachError, match="compiled layer"):
            train(compiled, optimizer, data[:2])
        return
    train(compiled, optimizer, data[:2])
    with torch._dynamo.config.patch(error_on_recompile=True):
        train(compiled, optimizer, data[2:])
    sparsifier.finalize()
