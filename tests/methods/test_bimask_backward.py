"""Input gradients by another weight: under autocast, checkpointing, copies, errors, and where they cannot be."""

import copy
import pickle
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.grad import conv2d_input
from torch.utils.checkpoint import checkpoint

import nmlearn as nm
from nets import Layers, batches, convnet, snapshot, train
from nmlearn.errors import AttachError
from references import attached, back, bimask, one_linear


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


def test_weights_in_one_flat_buffer():
    """As cuDNN's recurrent layers keep them: each is a part of the storage, and none begins it."""

    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            flat = torch.randn(1 + 2 * 16 * 16)
            self.first, self.last = (nn.Parameter(flat[1:].view(2, 16, 16)[i]) for i in range(2))

        def forward(self, x):
            return F.linear(F.linear(x, self.first), self.last)

    along_inputs = nm.Grouping(nm.Pattern("2:4"), 1)
    model = Flat()
    optimizer, sparsifier = attached(model, rules={"first": along_inputs, "last": along_inputs})
    x = torch.randn(4, 16, requires_grad=True)
    model(x).sum().backward()
    expected = torch.ones(4, 16) @ back(sparsifier, "last") @ back(sparsifier, "first")
    torch.testing.assert_close(x.grad, expected)
    optimizer.step()
    assert sparsifier.step == 1


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
    _optimizer, _ = attached(model, rules={"*": "2:4"})  # the hooks act while it is there
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
        p.grad = torch.ones_like(p)
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


def test_weights_that_are_used_past_their_layer_are_refused():
    layer, optimizer, _ = one_linear()
    x = torch.randn(4, 16, requires_grad=True)
    F.linear(x, layer.weight).sum().backward()
    with pytest.raises(AttachError, match=r"weight: .*its layer was never called.*use a method other than bimask"):
        optimizer.step()


def test_layers_that_a_step_leaves_out_are_no_mistake():
    """Their gradient is None, or zero where gradients are kept: layers dropped at random, experts without tokens."""
    for to_none in (True, False):
        model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
        optimizer, sparsifier = attached(model, rules={"*": "2:4"})
        for layers in (model, model[:1], model):
            optimizer.zero_grad(set_to_none=to_none)
            layers(torch.randn(4, 16)).sum().backward()
            optimizer.step()
        assert sparsifier.step == 3


def test_a_copy_that_cannot_be_followed_is_refused():
    class Doubled(nn.Linear):
        def forward(self, x):
            return F.linear(x, 2 * self.weight)

    model = Doubled(16, 8)
    optimizer, _ = attached(model, rules={"*": "2:4"})
    model(torch.randn(4, 16, requires_grad=True)).sum().backward()
    with pytest.raises(AttachError, match="computed with a copy"):
        optimizer.step()


def test_detached_layers_are_ordinary_ones():
    layer, _, sparsifier = one_linear()
    sparsifier.detach()
    assert not layer._forward_hooks and not layer._forward_pre_hooks
