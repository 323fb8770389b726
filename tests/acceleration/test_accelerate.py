"""nm.accelerate on realistic models: what is replaced, folded and left dense, and that nothing else changes."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nmlearn as nm
from accelerated import network, packed, same, sparse_is_fast  # noqa: F401  (a fixture)
from nmlearn.acceleration import candidates
from nmlearn.acceleration.timing import Timing
from nmlearn.errors import KernelError
from nmlearn.lab.bench.weights import sparse_
from nmlearn.native import library as native

pytestmark = pytest.mark.skipif(not native.isa(), reason="the CPU kernels are not built")


@pytest.mark.parametrize(("name", "size"), [("resnet8", (3, 32, 32)), ("resnet50", (3, 64, 64)), ("vit", (3, 32, 32))])
def test_a_model_computes_the_same_with_all_its_sparse_layers_packed(name, size):
    model, x = network(name, size=size), torch.randn(2, *size)
    reference = copy.deepcopy(model)
    report = nm.accelerate(model, x, cache=None)
    chosen = {row.name for row in report.rows if row.chosen}
    assert chosen and chosen == packed(model)
    assert not any(isinstance(m, nn.BatchNorm2d) for name, m in model.named_modules() if name != "bn1")
    same(model, reference, x)
    same(model, reference, torch.randn(3, *size))  # another batch than the example's


def test_what_comes_after_a_convolution_is_folded_into_it():
    model = network()
    nm.accelerate(model, torch.randn(1, 3, 32, 32), cache=None)
    block = model.layer1[0]
    assert (block.conv1.activation, block.conv2.activation) == ("relu", "relu")
    assert "conv2" in block.code and "relu" not in block.code and "+" not in block.code


def test_an_addition_that_broadcasts_is_not_folded():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(16, 16)
            self.other = nn.Parameter(torch.randn(1, 16))

        def forward(self, x):
            return F.relu(self.layer(x) + self.other)

    model = nn.Sequential(Block(), Block()).eval()
    for block in model:
        sparse_(block.layer.weight, "2:4")
    reference, x = copy.deepcopy(model), torch.randn(5, 16)
    nm.accelerate(model, x, cache=None)
    assert packed(model) == {"0.layer", "1.layer"}
    same(model, reference, x)


def test_a_layer_used_twice_in_a_block_is_packed_without_what_follows_one_of_its_calls():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(16, 16)

        def forward(self, x):
            return self.layer(F.relu(self.layer(x)))

    model = nn.Sequential(Twice()).eval()
    sparse_(model[0].layer.weight, "1:4")
    reference, x = copy.deepcopy(model), torch.randn(4, 16)
    nm.accelerate(model, x, cache=None)
    assert model[0].layer.activation == "none"
    same(model, reference, x)


def test_a_block_that_cannot_be_traced_is_left_but_for_its_layers():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(16, 16)

        def forward(self, x):
            return F.relu(self.layer(x)) if x.sum() > 0 else self.layer(x)

    model = nn.Sequential(Branches()).eval()
    sparse_(model[0].layer.weight, "1:4")
    reference, x = copy.deepcopy(model), torch.rand(4, 16)
    nm.accelerate(model, x, cache=None)
    assert type(model[0]).__name__ == "Branches" and packed(model) == {"0.layer"}
    same(model, reference, x)
    same(model, reference, -x)


def test_reasons_for_every_layer_left_dense():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.dense, self.unused, self.used = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)
            self.attention = nn.TransformerEncoderLayer(16, 2, 16, batch_first=True)

        def forward(self, x):
            return self.attention(self.used(self.dense(x)))

    model = Model().eval()
    for layer in (model.unused, model.used, model.attention.linear1):
        sparse_(layer.weight, "2:4")
    report = nm.accelerate(model, torch.randn(1, 3, 16), cache=None)
    why = {row.name: row.why for row in report.rows}
    assert why["dense"] == "dense: its zeros have no pattern"
    assert why["unused"] == "the example did not call it"
    assert why["attention.linear1"] == "its parent reads the weight directly"
    assert packed(model) == {"used"}
    text = str(report)
    assert "1 of 5 layers packed" in text and "its parent reads the weight directly" in text


def test_sparse_weights_of_other_layers_are_listed_with_the_reason():
    class Scaled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    class Named(nn.Linear):
        pass

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.scaled, self.named, self.dense = Scaled(16, 16), Named(16, 16), Scaled(16, 16)
            self.lstm, self.along = nn.LSTM(16, 16, batch_first=True), nn.Conv1d(16, 16, 1)
            self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
            self.zeros = nn.Parameter(torch.zeros(16, 16))

        def forward(self, x):
            x = self.along(self.lstm(self.dense(self.named(self.scaled(x))))[0].mT).mT
            return self.attention(x, x, x)[0]

    model = Model().eval()
    for weight in (model.scaled.weight, model.named.weight, model.lstm.weight_hh_l0, model.along.weight):
        sparse_(weight, "2:4")
    sparse_(model.attention.in_proj_weight, "1:4")
    report = nm.accelerate(model, torch.randn(1, 3, 16), cache=None)
    assert {row.name: (row.pattern, row.why) for row in report.rows} == {
        "scaled": ("2:4", "its layer is a Scaled: a subclass of Linear with its own forward"),
        "named": ("2:4", "its layer is a Named: a subclass of Linear which may differ from it"),
        "lstm.weight_hh_l0": ("2:4", "its layer is a LSTM: only Linear and Conv2d are replaced"),
        "along": ("2:4", "its layer is a Conv1d: only Linear and Conv2d are replaced"),
        "attention.in_proj_weight": ("1:4", "its layer is a MultiheadAttention: only Linear and Conv2d are replaced"),
    }
    assert not any(row.chosen for row in report.rows) and report.rows[2].weight == (64, 16)


def test_gpt2s_own_kind_of_layer_is_listed_along_its_input_axis():
    kind = type(
        "Conv1D", (nn.Module,), {"__module__": "transformers.pytorch_utils", "forward": lambda m, x: x @ m.weight}
    )
    model = nn.Sequential(kind()).eval()
    model[0].weight = nn.Parameter(sparse_(torch.randn(32, 16), "1:4").mT.contiguous())
    report = nm.accelerate(model, torch.randn(2, 16), cache=None)
    assert [(row.name, row.pattern) for row in report.rows] == [("0", "1:4")] and "a Conv1D" in report.rows[0].why


@pytest.mark.parametrize(
    ("example", "given", "wrong"),
    [
        (
            torch.zeros(2, 17),
            "float32 [2, 17]",
            "RuntimeError: mat1 and mat2 shapes cannot be multiplied (2x17 and 16x",
        ),
        ((torch.zeros(2, 16), [1]), "(float32 [2, 16], (1))", "takes 2 positional arguments but 3 were given"),
        ({"y": torch.zeros(1)}, "{y: float32 [1]}", "got an unexpected keyword argument 'y'"),
        (3, "3", "it is a int"),
        (None, "None", "it is a NoneType"),
    ],
)
def test_an_example_that_forward_refuses(example, given, wrong):
    model = nn.Linear(16, 8).eval()
    with pytest.raises(KernelError) as caught:
        nm.accelerate(model, example, cache=None)
    error = caught.value
    assert (error.where, error.given) == ("accelerate: example_inputs", given) and wrong in error.wrong
    assert "for Linear.forward(input: torch.Tensor)" in error.fix


def test_a_model_that_would_compute_something_else_is_put_back():
    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(16, 16)

        def forward(self, x):
            y = self.layer(x)
            return y * (2 if isinstance(self.layer, nn.Linear) else 1)

    model = nn.Sequential(Reads()).eval()
    sparse_(model[0].layer.weight, "1:4")
    state = copy.deepcopy(model.state_dict())
    model[0].register_forward_hook(lambda m, _, y: y * (2 if isinstance(m.layer, nn.Linear) else 1))
    reads = model[0]
    with pytest.raises(KernelError, match="was restored"):
        nm.accelerate(model, torch.randn(2, 16), cache=None)
    assert model[0] is reads and type(model[0].layer) is nn.Linear
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_nothing_is_replaced_where_dense_is_as_fast(monkeypatch):
    monkeypatch.setattr(candidates, "interleaved", lambda calls, **_: Timing(dict.fromkeys(calls, 1.0)))
    model = network()
    report = nm.accelerate(model, torch.randn(1, 3, 32, 32), cache=None)
    assert not packed(model) and all(row.why for row in report.rows)
    assert sum(isinstance(m, nn.BatchNorm2d) for m in model.modules()) > 5


def test_training_mode_is_refused():
    with pytest.raises(KernelError, match=r"model\.eval\(\)"):
        nm.accelerate(network().train(), torch.randn(1, 3, 32, 32))


def test_arguments_by_position_and_by_name():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(16, 16)

        def forward(self, x, *, scale=1.0):
            return {"out": (self.layer(x) * scale, x)}

    for example in (dict(x=torch.randn(2, 16), scale=2.0), (torch.randn(2, 16),)):
        model = Model().eval()
        sparse_(model.layer.weight, "1:4")
        assert nm.accelerate(model, example, cache=None).rows[0].chosen


def test_times_are_kept_for_this_machine_alone(tmp_path, monkeypatch):
    cache = tmp_path / "folder" / "times.json"
    x = torch.randn(1, 3, 32, 32)
    nm.accelerate(network(), x, cache=cache)
    known = json.loads(cache.read_text())
    assert known["machine"]["threads"] == torch.get_num_threads() and known["times"]
    monkeypatch.setattr(candidates, "interleaved", lambda *_, **__: pytest.fail("measured again"))
    model = network()
    nm.accelerate(model, x, cache=cache)
    assert packed(model)
    cache.write_text(json.dumps(known | {"machine": {}}))
    with pytest.raises(pytest.fail.Exception, match="measured again"):
        nm.accelerate(network(), x, cache=cache)


def test_noisy_times_are_not_kept(tmp_path, monkeypatch):
    cache, x, limits = tmp_path / "times.json", torch.randn(1, 3, 32, 32), []

    def told(calls, **how):
        limits.append(how.get("limits"))
        times = {name: 1.0 if name.startswith(("eager", "prepacked")) else 0.01 for name in calls}
        return Timing(times, 0.9, "half of the rounds ...")

    monkeypatch.setattr(candidates, "interleaved", told)
    report = nm.accelerate(network(), x, cache=cache)
    assert not cache.exists() and sum(row.noisy for row in report.rows) > 5
    assert "noisy times: half of the rounds ..." in report.rows[-2].why and "they are not kept" in str(report)
    assert limits[0] == dict.fromkeys(("rows", "tokens", "tokens of planes"), 4) and len(limits) < len(report.rows)
    monkeypatch.setattr(candidates, "interleaved", lambda calls, **_: Timing(dict.fromkeys(calls, 1.0), 0.25))
    nm.accelerate(network(), x, cache=cache)
    known = json.loads(cache.read_text())
    assert set(known["spread"].values()) == {0.25} and known["spread"].keys() == known["times"].keys()


@pytest.mark.parametrize("spread", [{}, [], "0.9"])
def test_kept_times_of_unknown_or_wide_spread_are_measured_again(tmp_path, monkeypatch, spread):
    cache, x = tmp_path / "times.json", torch.randn(1, 3, 32, 32)
    nm.accelerate(network(), x, cache=cache)
    known = json.loads(cache.read_text())
    spread = dict.fromkeys(known["times"], 0.9) if spread == "0.9" else spread
    cache.write_text(json.dumps(known | {"spread": spread}))
    monkeypatch.setattr(candidates, "interleaved", lambda *_, **__: pytest.fail("measured again"))
    with pytest.raises(pytest.fail.Exception, match="measured again"):
        nm.accelerate(network(), x, cache=cache)


def test_a_broken_cache_is_started_again(tmp_path):
    cache = tmp_path / "times.json"
    x = torch.randn(1, 3, 32, 32)
    nm.accelerate(network(), x, cache=cache)
    known = json.loads(cache.read_text())
    texts = ["{", "[]", '{"machine": 3}', "[" * 100_000, "\0"]
    poisons = [[], None, "1", {"eager": 1.0}, {"eager": "fast"}, {"rows": 1.0}, {"eager": 1.0, "rows": None}, math.nan]
    for times in [*poisons, *(dict.fromkeys(known["times"], poison) for poison in poisons)]:
        texts += [json.dumps(known | {"times": times, "failed": failed}) for failed in (known["failed"], [], poisons)]
    for text in texts:
        cache.write_text(text)
        nm.accelerate(network(), x, cache=cache)
        assert json.loads(cache.read_text())["times"].keys() == known["times"].keys()


def test_bfloat16():
    model, x = network("vit").to(torch.bfloat16), torch.randn(2, 3, 32, 32, dtype=torch.bfloat16)
    reference = copy.deepcopy(model)
    nm.accelerate(model, x, cache=None)
    assert packed(model)
    same(model, reference, x, 2e-2)


def test_int8_weights_are_close_and_smaller():
    model, x = network("vit"), torch.randn(2, 3, 32, 32)
    reference = copy.deepcopy(model)
    nm.accelerate(model, x, int8=True, cache=None)
    layers = [m for m in model.modules() if isinstance(m, nm.PackedLinear)]
    assert layers and all(m.values.dtype == torch.int8 for m in layers)
    same(model, reference, x, 5e-2)


def test_torch_export_of_an_accelerated_model():
    model, x = network(), torch.randn(2, 3, 32, 32)
    nm.accelerate(model, x, cache=None)
    with torch.inference_mode():
        program = torch.export.export(model, (x,))
        torch.testing.assert_close(program.module()(x), model(x))
    assert any("nmlearn.packed" in str(node.target) for node in program.graph.nodes)


def test_an_accelerated_model_works_outside_of_inference_mode():
    model, x = network(), torch.randn(2, 3, 32, 32)
    nm.accelerate(model, x, cache=None)
    with torch.no_grad():
        expected = model(x)
        model.load_state_dict({name: value.clone() for name, value in model.state_dict().items()})
        assert torch.equal(model(x), expected)
    assert not any(value.is_inference() for value in model.state_dict().values())
