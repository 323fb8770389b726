"""When a block's traced code takes its place, and when the block is left but for its layers."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nmlearn as nm
from accelerated import packed, same, sparse_is_fast  # noqa: F401  (a fixture)
from nmlearn.lab.bench.weights import sparse_
from nmlearn.native import library as native

pytestmark = pytest.mark.skipif(not native.isa(), reason="the CPU kernels are not built")


class Block(nn.Module):
    """Two layers and an addition, to be called in several ways."""

    def __init__(self):
        super().__init__()
        self.layer, self.last = (sparse_layer() for _ in range(2))

    def forward(self, x, y=None, scale=1.0):
        y = x if y is None else y
        return F.relu(self.last(F.gelu(self.layer(x))) + y) * scale

    if_given = forward

    def several(self, *xs):
        return F.relu(self.last(F.gelu(self.layer(xs[0]))) + xs[-1])

    def by_type(self, x):
        return F.relu(self.last(self.layer(x)) + x) if isinstance(x, torch.Tensor) else x[0]

    def positions(self, x):
        return self.last(F.relu(self.layer(x) + self.position))

    def mean(self, x):
        return self.last(F.relu(self.layer(x) + x.mean(0, keepdim=True)))

    def reads(self, x):
        return F.relu(self.layer(x) + self.last.weight[0]) + self.last(x)

    def concatenates(self, xs):  # as a layer of DenseNet
        xs = [xs] if isinstance(xs, torch.Tensor) else xs
        x = torch.cat(xs, 1)
        return F.relu(self.last(F.gelu(self.layer(x))) + x)

    def two(self, x, y):
        return F.relu(self.last(self.layer(x)) + y), {"sum": x + y}

    def without(self, x):
        return F.relu(self.last(self.layer(x)) + x)


def sparse_layer():
    layer = nn.Linear(16, 16)
    sparse_(layer.weight, "2:4")
    return layer


class Model(nn.Module):
    """A block under one of its codes, called once or more."""

    def __init__(self, code, *calls):
        super().__init__()
        kind = type("Coded", (Block,), {"forward": getattr(Block, code)})
        self.block, self.calls = kind(), calls
        if code == "positions":
            self.block.position = nn.Parameter(torch.randn(1, 5, 16))

    def forward(self, x):
        return [call(self.block, x) for call in self.calls]


def accelerated(code, *calls, batch=2):
    """An accelerated model, which computes as before also on a larger batch, and whether its block was rewritten."""
    torch.manual_seed(0)
    model, x = Model(code, *calls).eval(), torch.randn(batch, 5, 16)
    reference = copy.deepcopy(model)
    report = nm.accelerate(model, x, cache=None)
    for example in (x, torch.randn(batch + 2, 5, 16)):
        with torch.inference_mode():
            got, expected = model(example), reference(example)
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    return report, model, isinstance(model.block, torch.fx.GraphModule)


TWO = {"block.layer", "block.last"}


def grows(block, x):
    """The caller's list gets more after the call, as in DenseNet."""
    given = [x, 2 * x]
    y = block(given)
    given.append(torch.cat([x, x], -1))
    return y


@pytest.mark.parametrize(
    ("code", "call"),
    [("two", lambda block, x: block(x, 2 * x)), ("without", lambda block, x: block(x)),
     ("if_given", lambda block, x: block(x, 2 * x, x)), ("concatenates", grows)],
)  # fmt: skip
def test_a_block_that_gets_a_tensor_for_each_argument_is_rewritten(code, call):
    for batch in (1, 2):
        _, model, rewritten = accelerated(code, call, batch=batch)
        assert rewritten and packed(model) == TWO
        assert model.block.last.activation == "relu" and "+ y" not in model.block.code.replace("x + y", "")


@pytest.mark.parametrize(
    "calls",
    [
        [lambda block, x: block(x)],
        [lambda block, x: block(x, None)],
        [lambda block, x: block(x, 2 * x)],
        [lambda block, x: block(x, None, 2.0)],
        [lambda block, x: block(x, 2 * x, 2.0)],
        [lambda block, x: block(x, y=2 * x)],
        [lambda block, x: block(x=x, y=x, scale=x)],
        [lambda block, x: block(x, x, x), lambda block, x: block(x)],
        [lambda block, x: block(x, x, x), lambda block, x: block(x, None, x)],
        [lambda block, x: block(x, x, x), lambda block, x: block(x, x, scale=x)],
        [lambda block, x: block(x), lambda block, x: block(x, x, x)],
    ],
    ids=["left out", "None", "one left out", "number", "number last", "keyword", "keywords", "later left out",
         "later None", "later keyword", "later all"],
)  # fmt: skip
def test_a_block_whose_calls_leave_arguments_out_keeps_its_code(calls):
    _, model, rewritten = accelerated("if_given", *calls)
    assert not rewritten and packed(model) == TWO


def test_a_block_that_takes_any_number_of_tensors_keeps_its_code():
    for calls in ([lambda block, x: block(x)], [lambda block, x: block(x, 2 * x)]):
        assert not accelerated("several", *calls)[2]


@pytest.mark.parametrize(
    ("code", "calls"),
    [
        ("by_type", [lambda block, x: block(x)]),
        ("concatenates", [lambda block, x: block(x)]),
        ("concatenates", [lambda block, x: block([x]), lambda block, x: block(x)]),
    ],
)
def test_a_block_whose_code_depends_on_types_keeps_it(code, calls):
    _, model, rewritten = accelerated(code, *calls)
    assert not rewritten and packed(model) == TWO


@pytest.mark.parametrize("code", ["positions", "mean"])
@pytest.mark.parametrize("batch", [1, 2])
def test_an_addition_that_broadcasts_in_another_batch_is_not_folded(code, batch):
    _, model, rewritten = accelerated(code, lambda block, x: block(x), batch=batch)
    assert rewritten and packed(model) == TWO and model.block.layer.activation == "none"


def test_a_layer_whose_weight_the_code_reads_stays_dense():
    report, model, rewritten = accelerated("reads", lambda block, x: block(x))
    why = {row.name: row.why for row in report.rows}
    assert why["block.last"] == "its parent reads the weight directly"
    assert rewritten and packed(model) == {"block.layer"} and type(model.block.last) is nn.Linear


@pytest.mark.parametrize("hook", ["register_forward_hook", "register_forward_pre_hook"])
@pytest.mark.parametrize("name", ["block", "block.last", "block.act", "block.norm"])
def test_hooks_are_called_as_before(hook, name):
    class Folding(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 1)
            self.norm, self.act = nn.BatchNorm2d(16), nn.ReLU()

        def forward(self, x):
            return self.act(self.norm(self.last(self.first(x))))

    model = nn.ModuleDict({"block": Folding()})
    model.forward = lambda x: model["block"](x)
    for layer in (model["block"].first, model["block"].last):
        sparse_(layer.weight, "2:4")
    model.eval()
    calls = []
    getattr(model.get_submodule(name), hook)(lambda *_: calls.append(name))
    x = torch.randn(2, 16, 3, 3)
    reference = copy.deepcopy(model)
    report = nm.accelerate(model, x, cache=None)
    calls.clear()
    same(model["block"], reference["block"], x)
    assert len(calls) == 2, "once in each"
    assert "block.first" in packed(model) and ("block.last" in packed(model)) == (name != "block.last")
    if name == "block.last":
        assert [row.why for row in report.rows if row.name == name] == [
            "it has hooks, which a packed layer would not have"
        ]
