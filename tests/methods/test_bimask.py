"""Bi-Mask: as explicit backward passes in float64, and all that happens around another weight in the backward."""

import copy
import itertools
import pickle
import weakref

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.grad import conv2d_input, conv2d_weight
from torch.utils.checkpoint import checkpoint

import nmlearn as nm
from nets import Layers, batches, convnet, sgd, snapshot, train
from nmlearn.errors import AttachError, ConfigError
from references import beside, largest

DECAY = 2e-2  # the paper's would hardly show


def back_mask(forward, order, n, m):
    """Rows permuted, the N largest of every M consecutive rows in each column, rows put back."""
    rows = forward.reshape(len(forward), -1)
    kept = np.zeros(rows.shape, bool)
    for column, start in itertools.product(range(rows.shape[1]), range(0, len(rows), m)):
        some = [order[start + j] for j in range(m)]
        kept[sorted(some, key=lambda r: -abs(rows[r, column]))[:n], column] = True
    return kept.reshape(forward.shape)


class TwoMasks(torch.autograd.Function):
    """A linear layer or convolution: one weight forward, another one for the input gradient."""

    @staticmethod
    def forward(ctx, x, dense, used, back, layer):
        ctx.save_for_backward(x, dense, used, back)
        ctx.layer = layer
        if isinstance(layer, nn.Linear):
            return F.linear(x, used)
        return F.conv2d(x, used, None, layer.stride, layer.padding, layer.dilation, layer.groups)

    @staticmethod
    def backward(ctx, grad):
        (x, dense, used, back), layer = ctx.saved_tensors, ctx.layer
        if isinstance(layer, nn.Linear):
            dx, dw = grad @ back, grad.t() @ x
        else:
            how = (layer.stride, layer.padding, layer.dilation, layer.groups)
            dx, dw = conv2d_input(x.shape, back, grad, *how), conv2d_weight(x, dense.shape, grad, *how)
        return dx, dw + DECAY * (dense - used), None, None, None


class Reference(nn.Module):
    """A layer that learns in a dense weight; the order of rows is the library's."""

    def __init__(self, layer, w, n, m):
        super().__init__()
        self.layer, self.w, self.n, self.m = layer, w, n, m

    def in_use(self):
        dense = self.layer.weight.detach()
        return dense * torch.tensor(largest(dense.numpy(), self.n, self.m))

    def forward(self, x):
        used = self.in_use()
        back = used * torch.tensor(back_mask(used.numpy(), self.w.state["rows"].tolist(), self.n, self.m))
        out = TwoMasks.apply(x, self.layer.weight, used, back, self.layer)
        bias = self.layer.bias
        return out if bias is None else out + bias.view(-1, *[1] * (out.dim() - 2))


def bimask(pattern="2:4", **options):
    return nm.BiMask(pattern, **{"candidates": 5, "draws": 4} | options)


def attached(model, method=None, rules=None, steps=16):
    optimizer = sgd(model)
    return optimizer, nm.Sparsifier(model, method or bimask(), rules).attach(optimizer, steps)


def back(sparsifier, name="weight"):
    w = next(w for w in sparsifier._weights if w.name == name)
    return sparsifier.method.used_back(w.seen(), sparsifier._at())


def one_linear(dtype=torch.float32, **kwargs):
    layer = nn.Linear(16, 8, bias=False, dtype=dtype, **kwargs)
    return layer, *attached(layer, rules={"*": "2:4"})


@pytest.mark.parametrize("pattern", ["2:4", "1:4"])
def test_is_the_papers_method(pattern):
    """Linear, Conv2d and grouped; permutations are drawn on the way."""
    p, orders = nm.Pattern(pattern), set()

    def build(layer, name, sparsifier):
        return Reference(layer, next(w for w in sparsifier._weights if w.name == f"{name}.weight"), p.n, p.m)

    for step, sparsifier, ours, theirs in beside(bimask(pattern, decay=DECAY), build, steps=12):
        assert sparsifier.step == step
        for name in ("conv", "grouped", "hidden"):
            layer = getattr(theirs, name)
            torch.testing.assert_close(layer.w.state["dense"], layer.layer.weight.detach(), rtol=0, atol=1e-10)
            torch.testing.assert_close(getattr(ours, name).weight.detach(), layer.in_use(), rtol=0, atol=1e-10)
        orders.add(tuple(theirs.hidden.w.state["rows"].tolist()))
    assert len(orders) == 6  # as it was, behind the first step, and four times
    sparsifier.finalize()


def test_the_permutation_drawn_is_the_best_of_the_candidates():
    """More of what the forward mask keeps survives than in the given order, and more under more candidates."""
    kept = []
    for candidates in (1, 20, 200):
        model = convnet()
        optimizer, sparsifier = attached(model, bimask("1:4", candidates=candidates, draws=1), steps=1)
        train(model, optimizer, batches(1))
        w = next(w for w in sparsifier._weights if w.name == "hidden.weight")
        assert sorted(w.state["rows"].tolist()) == list(range(32)) != w.state["rows"].tolist()
        kept.append(int((back(sparsifier, "hidden.weight") != 0).sum()))
    assert kept[0] < kept[1] < kept[2]


def test_the_input_gradient_has_the_pattern_along_the_outputs():
    layer, _, sparsifier = one_linear()
    w = sparsifier._weights[0]
    w.state["rows"].copy_(torch.randperm(8))
    columns = (back(sparsifier)[w.state["rows"]] != 0).view(2, 4, 16)
    assert columns.sum(1).max() == 2 and not torch.equal(back(sparsifier), layer.weight.detach())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("shape", [(4, 16), (2, 3, 16)])
def test_autocast_and_low_precision(dtype, autocast, shape):
    """Under autocast a layer computes with a copy of its weight, which autograd saves in its place."""
    layer, _, sparsifier = one_linear(dtype)
    x = torch.randn(shape, dtype=dtype, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = layer(x)
    out.sum().backward()
    wide = out.dtype
    expected = torch.ones_like(out) @ back(sparsifier).to(wide)
    assert torch.equal(x.grad, expected.to(dtype))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("autocast", [False, True])
def test_convolutions(memory_format, autocast):
    conv = nn.Conv2d(16, 8, 3).to(memory_format=memory_format)
    _, sparsifier = attached(conv, rules={"*": "2:4"})
    x = torch.randn(2, 16, 6, 6).to(memory_format=memory_format).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = conv(x)
    grad = torch.randn_like(out)
    out.backward(grad)
    expected = conv2d_input(x.shape, back(sparsifier).to(grad.dtype), grad)
    torch.testing.assert_close(
        x.grad, expected.float(), rtol=1e-2 if autocast else 1e-5, atol=1e-2 if autocast else 1e-5
    )
    ordinary = conv2d_input(x.shape, conv.weight.detach(), grad.float())
    assert (x.grad - ordinary).abs().max() > 0.1


def test_the_weight_never_changes_in_a_backward_pass():
    """Gradients accumulated, evaluation in between, gradients by autograd.grad, an error in the middle."""
    model = convnet()
    optimizer, sparsifier = attached(model)
    (x, y), *_ = batches(1)
    seen = []
    model.norm.weight.register_hook(lambda _: seen.append(model.hidden.weight.detach().clone()))  # amid the backward
    before, version = snapshot(model), model.hidden.weight._version
    for _ in range(2):
        F.cross_entropy(model(x), y).backward()
    with torch.no_grad():
        model.eval()(x)
    torch.autograd.grad(F.cross_entropy(model(x), y), model.hidden.bias)
    loss = F.cross_entropy(model(x), y)
    handle = model.norm.bias.register_hook(lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        loss.backward()
    handle.remove()
    weights = dict(model.named_parameters())
    assert len(seen) >= 2 and all(torch.equal(weight, before["hidden.weight"]) for weight in seen)
    assert all(torch.equal(before[name], weight) for name, weight in weights.items())
    assert model.hidden.weight._version == version
    optimizer.step()
    assert sparsifier.step == 1


def test_a_graph_that_is_kept_gives_the_same_gradient_again():
    layer, _, _ = one_linear()
    x = torch.randn(4, 16, requires_grad=True)
    out = layer(x).square().sum()
    first, second = (torch.autograd.grad(out, x, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_an_input_that_is_overwritten_is_still_an_error():
    """Hooks on saved tensors switch autograd's own check off."""
    layer, _, _ = one_linear()
    x = torch.randn(4, 16)
    out = layer(x)
    x.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_first_layers_without_an_input_gradient_learn():
    """Autograd does not save their weight at all: also behind frozen layers, and with data that needs no gradient."""
    model = convnet()
    model.stem.requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.05)
    sparsifier = nm.Sparsifier(model, bimask()).attach(optimizer, 4)
    before = snapshot(model)
    train(model, optimizer, batches(4))
    assert sparsifier.step == 4 and not torch.equal(model.conv.weight, before["conv.weight"])
    layer, optimizer, _ = one_linear()
    layer(torch.randn(4, 16)).sum().backward()
    optimizer.step()


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.between, self.last = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)
        self.last.weight = self.first.weight

    def forward(self, x):
        return self.last(F.relu(self.between(F.relu(self.first(x)))))


def test_a_weight_shared_by_two_layers():
    model = Shared().double()
    _, sparsifier = attached(model, rules={"*": "2:4"})
    x = torch.randn(4, 16, dtype=torch.float64, requires_grad=True)
    middle = F.relu(model.first(x).detach()).requires_grad_()
    inner = F.relu(model.between(middle).detach())
    model(x).sum().backward()
    shared, between = back(sparsifier, "first.weight"), back(sparsifier, "between.weight")
    grad = torch.ones(4, 16, dtype=torch.float64) @ shared * (inner > 0)
    grad = grad @ between * (middle > 0)
    torch.testing.assert_close(x.grad, grad @ shared, rtol=0, atol=1e-12)


def two(x, used, back, bias):
    """The value of one weight, the input gradient of another."""
    return x @ back.t() + (x @ (used - back).t()).detach() + bias


@pytest.mark.parametrize("alike", [True, False])
def test_attention(alike):
    """Its output projection is never called itself; keys of their own take parts of the weight of the inputs."""
    attention = nn.MultiheadAttention(16, 2, batch_first=True).double()
    optimizer, sparsifier = attached(attention, rules={"*": "2:4"})
    found = []
    for by_hand in (False, True):
        torch.manual_seed(0)
        query, other = (torch.randn(2, 3, 16, dtype=torch.float64, requires_grad=True) for _ in range(2))
        key = query if alike else other
        if by_hand:
            used, back_ = attention.in_proj_weight.detach(), back(sparsifier, "in_proj_weight")
            parts = zip((query, key, key), used.chunk(3), back_.chunk(3), attention.in_proj_bias.chunk(3), strict=True)
            heads = [two(*part).view(2, 3, 2, 8).transpose(1, 2) for part in parts]
            mixed = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
            projection = attention.out_proj
            out = two(mixed, projection.weight.detach(), back(sparsifier, "out_proj.weight"), projection.bias)
        else:
            out = attention(query, key, key, need_weights=False)[0]
        out.square().sum().backward()
        found.append([out.detach(), query.grad] + ([] if alike else [key.grad]))
    torch.testing.assert_close(*found, rtol=0, atol=1e-12)
    optimizer.step()
    assert sparsifier.step == 1


def test_recurrence():
    """An LSTM's weights, by the hidden state alone, which is not the first of its outputs."""
    rnn = nn.LSTM(16, 8).double()
    _, sparsifier = attached(rnn, rules={"*": "2:4"})
    x, y = (torch.ones(1, 2, 16, dtype=torch.float64, requires_grad=True) for _ in range(2))  # one moment
    rnn(x)[1][0].sum().backward()
    gates = two(y, rnn.weight_ih_l0.detach(), back(sparsifier, "weight_ih_l0"), rnn.bias_ih_l0 + rnn.bias_hh_l0)
    i, _, g, o = gates.chunk(4, -1)
    (o.sigmoid() * (i.sigmoid() * g.tanh()).tanh()).sum().backward()
    torch.testing.assert_close(x.grad, y.grad, rtol=0, atol=1e-12)


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing(reentrant):
    """The layers run forward again within the backward pass: the same gradients, bit for bit, and nothing is kept."""
    found, alive = [], []
    for recompute in (False, True):
        torch.manual_seed(0)
        model, middle = nn.Sequential(nn.Linear(16, 16), nn.Sigmoid(), nn.Linear(16, 16)).double(), []
        model[1].register_forward_hook(lambda module, args, out, seen=middle: seen.append(weakref.ref(out)))
        attached(model, rules={"*": "2:4"})
        x = torch.ones(4, 16, dtype=torch.float64, requires_grad=True)
        out = checkpoint(model, x, use_reentrant=reentrant) if recompute else model(x)
        alive.append(middle[0]() is not None)
        out.square().sum().backward()
        found.append([x.grad, *(p.grad for p in model.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert alive[1] is False


def test_hooks_around_the_layers_are_kept():
    """Every saved tensor but the weights is left to them: as when activations are moved to the CPU."""
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))
    attached(model, rules={"*": "2:4"})
    packed, unpacked = [], []
    x = torch.randn(4, 16, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: packed.append(t) or t.clone(), lambda t: unpacked.append(t) or t
    ):
        out = model(x)
    out.sum().backward()
    assert [t.shape for t in packed] == [(4, 16)] * 3 and len(unpacked) == 3


def test_a_layer_that_fails_leaves_no_hooks_behind():
    layer, _, _ = one_linear()
    for _ in range(3):
        with pytest.raises(RuntimeError, match="shapes"):
            layer(torch.randn(4, 3))
        assert torch._C._autograd._top_saved_tensors_default_hooks(False) is None


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_of_the_model_are_free_of_the_sparsifier(copied):
    model = Layers()
    optimizer, sparsifier = attached(model, bimask("2:4"))
    data = batches(2, shape=(3, 8))
    train(model, optimizer, data)
    twin, before = copied(model), snapshot(model)
    x = data[0][0].requires_grad_()
    twin(x).sum().backward()
    fresh = Layers()
    fresh.load_state_dict(twin.state_dict())
    other = x.detach().clone().requires_grad_()
    fresh(other).sum().backward()
    assert torch.equal(x.grad, other.grad)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    with pytest.raises(AttachError, match="never called"):  # the copy's forward pass was none of the model's
        optimizer.step()
    assert sparsifier.step == 2 and all(torch.equal(before[name], p) for name, p in model.named_parameters())


@pytest.mark.parametrize("export", [torch.export.export, lambda model, x: torch.jit.trace(model, x)])
@pytest.mark.filterwarnings("ignore:.*torch.jit.trace:DeprecationWarning")
def test_an_attached_model_is_exported_as_a_plain_one(export):
    layer, _, _ = one_linear()
    x = torch.randn(4, 16)
    made = export(layer, (x,))
    run = made.module() if hasattr(made, "module") else made
    assert torch.equal(run(x), layer(x)) and torch._C._autograd._top_saved_tensors_default_hooks(False) is None


def test_without_draws_rows_stay_in_their_order():
    model = convnet()
    optimizer, sparsifier = attached(model, bimask(draws=0), steps=4)
    train(model, optimizer, batches(4))
    assert all(w.state["rows"].tolist() == list(range(32)) for w in sparsifier._weights)


def test_weights_that_are_used_past_their_layer_are_refused():
    layer, optimizer, _ = one_linear()
    x = torch.randn(4, 16, requires_grad=True)
    F.linear(x, layer.weight).sum().backward()
    with pytest.raises(AttachError, match=r"weight: .*its layer was never called.*use a method other than bimask"):
        optimizer.step()


def test_a_copy_that_cannot_be_followed_is_refused():
    class Doubled(nn.Linear):
        def forward(self, x):
            return F.linear(x, 2 * self.weight)

    model = Doubled(16, 8)
    optimizer, _ = attached(model, rules={"*": "2:4"})
    model(torch.randn(4, 16, requires_grad=True)).sum().backward()
    with pytest.raises(AttachError, match="computed with a copy"):
        optimizer.step()


def test_outputs_that_make_no_groups_have_the_ordinary_input_gradient():
    layer = nn.Linear(16, 6)
    optimizer, sparsifier = attached(layer, rules={"*": "2:4"})
    x = torch.randn(4, 16, requires_grad=True)
    layer(x).sum().backward()
    assert torch.equal(x.grad, torch.ones(4, 6) @ layer.weight.detach())
    optimizer.step()
    assert sparsifier.step == 1


def test_detached_layers_are_ordinary_ones():
    layer, _, sparsifier = one_linear()
    sparsifier.detach()
    assert not layer._forward_hooks and not layer._forward_pre_hooks


def test_settings_that_make_no_sense_are_refused():
    for options in ({"candidates": 0}, {"draws": -1}):
        with pytest.raises(ConfigError, match=f"method.options.{next(iter(options))}: "):
            bimask(**options)
