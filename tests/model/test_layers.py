"""Where inputs lie: stacked experts of transformers, and weights that are computed from others."""

import importlib
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import nmlearn as nm
from nmlearn.errors import PlanError

CONFIG = SimpleNamespace(
    **dict(hidden_size=8, intermediate_size=16, num_local_experts=3, num_experts=3, moe_intermediate_size=16),
    **dict(swiglu_alpha=1.0, swiglu_limit=1.0, hidden_act="silu", _experts_implementation="eager"),
)


def experts(model, name):
    return getattr(importlib.import_module(f"transformers.models.{model}.modeling_{model}"), name)(CONFIG)


def rows(model, rules=None):
    return {row.name: row for row in nm.Sparsifier(model, nm.LBC("2:4"), rules).plan.rows}


STACKED = [
    ("gpt_oss", "GptOssExperts", 1),
    ("llama4", "Llama4TextExperts", 1),
    ("mixtral", "MixtralExperts", 2),
    ("qwen2_moe", "Qwen2MoeExperts", 2),
]


@pytest.mark.parametrize(("model", "name", "axis"), STACKED)
def test_stacked_experts_of_transformers_are_grouped_along_their_inputs(model, name, axis):
    layer = experts(model, name)
    for rules in (None, {"experts": "2:4"}, {"*_proj": "2:4"}):
        taken = {name: row for name, row in rows(nn.ModuleDict({"experts": layer}), rules).items() if row.pattern}
        assert {name: row.grouping.axis for name, row in taken.items()} == {
            "experts.gate_up_proj": axis,
            "experts.down_proj": axis,
        }
    # the axis is the one that the inputs of 8 run along
    assert layer.gate_up_proj.shape[axis] == 8 and layer.down_proj.shape[axis] == 16


class Unknown(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Parameter(torch.randn(3, 8, 16))


def test_an_unknown_layer_says_how_to_give_the_axis():
    model = nn.ModuleDict({"experts": Unknown()})
    assert "nm.Grouping(pattern, axis)" in rows(model)["experts.up"].reason
    with pytest.raises(PlanError) as caught:
        rows(model, {"experts": "2:4"})
    assert caught.value.fix == (
        "write 'experts.up': nm.Grouping('2:4', axis), with axis 1 for [experts, in, out] and 2 for [experts, out, in]"
    )
    assert rows(model, {"experts.up": nm.Grouping("2:4", 1)})["experts.up"].grouping.axis == 1


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize("norm", [parametrizations.weight_norm, nn.utils.weight_norm, nn.utils.spectral_norm])
@pytest.mark.parametrize("layer", [lambda: nn.Conv1d(8, 8, 4), lambda: nn.Linear(8, 8)])
def test_a_weight_that_is_computed_from_others_stays_dense_and_says_what_to_do(norm, layer):
    model = nn.ModuleDict({"stem": nn.Conv1d(8, 8, 1), "layer": norm(layer()), "head": nn.Linear(8, 5)})
    found = rows(model)
    inner = [row for name, row in found.items() if name.startswith("layer.")]
    assert inner and all("remove the parametrization first" in row.reason for row in inner)
    with pytest.raises(PlanError, match="remove the parametrization first"):
        rows(model, {inner[-1].name: "2:4"})


def test_a_parametrization_that_keeps_zeros_is_taken_with_its_axis():
    model = nn.ModuleDict({"layer": parametrizations.weight_norm(nn.Conv1d(8, 8, 4)), "head": nn.Linear(8, 5)})
    name = "layer.parametrizations.weight.original1"
    assert rows(model, {name: nm.Grouping("2:4", 1)})[name].grouping.axis == 1
