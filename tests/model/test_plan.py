"""Plans: what is taken, what is left dense and why, and which rules are errors."""

import pytest
import torch
from torch import nn

import nmlearn as nm
from nets import convnet
from nmlearn.errors import PatternError, PlanError


def plan(model, rules=None, pattern="2:4"):
    return {row.name: row for row in nm.Sparsifier(model, nm.LBC(pattern), rules).plan.rows}


def patterns(model, rules=None, pattern="2:4"):
    return {name: str(row.pattern) if row.pattern else None for name, row in plan(model, rules, pattern).items()}


def test_defaults_leave_the_first_convolution_and_the_output_layer_dense():
    rows = plan(convnet())
    assert rows["stem.weight"].reason == "first convolution: dense by default, as in the paper"
    assert rows["head.weight"].reason == "output layer: dense by default, as in the paper"
    assert [name for name, row in rows.items() if row.pattern] == ["conv.weight", "grouped.weight", "hidden.weight"]
    assert rows["conv.weight"].combinations == 6 and rows["conv.weight"].weights == 32 * 16 * 9


def test_a_rule_overrides_the_defaults_and_the_last_match_wins():
    assert patterns(convnet(), {"*": "1:4", "hidden": None, "head": "2:8"}) == {
        "stem.weight": None,  # 3 input channels
        "conv.weight": "1:4",
        "grouped.weight": "1:4",
        "hidden.weight": None,
        "head.weight": "2:8",
    }
    assert patterns(convnet(), {"hidden": None, "*": "1:4"})["hidden.weight"] == "1:4"


def test_a_glob_names_a_module_with_all_in_it_or_a_weight():
    model = nn.ModuleDict({"a": nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), "b": nn.Linear(8, 8)})
    assert patterns(model, {"a": "1:4", "b": None})["a.1.weight"] == "1:4"
    assert patterns(model, {"a.1.weight": "1:4"})["a.1.weight"] == "1:4"
    assert set(patterns(model, {"": "1:8"}).values()) == {"1:8"}


def test_reasons():
    model = nn.ModuleDict(
        {
            "stem": nn.Conv2d(3, 8, 3),
            "narrow": nn.Conv2d(3, 8, 1),
            "depthwise": nn.Conv2d(8, 8, 3, groups=8),
            "table": nn.Embedding(10, 8),
            "frozen": nn.Linear(8, 8).requires_grad_(False),
            "bilinear": nn.Bilinear(8, 8, 4),
            "out": nn.Linear(8, 4),
        }
    )
    reasons = {name.split(".")[0]: row.reason for name, row in plan(model).items()}
    assert reasons["narrow"] == "3 input channels, not a multiple of 4"
    assert reasons["depthwise"] == "1 input channels, not a multiple of 4"
    assert reasons["table"].startswith("an embedding")
    assert reasons["frozen"] == "frozen: requires_grad is False"
    assert "name it in a rule" in reasons["bilinear"]


def test_layers_of_torch():
    model = nn.ModuleDict(
        {
            "c1": nn.Conv1d(8, 8, 3),
            "c3": nn.Conv3d(8, 8, 2),
            "up": nn.ConvTranspose2d(8, 3, 2),
            "attn": nn.MultiheadAttention(8, 2),
            "cross": nn.MultiheadAttention(8, 2, kdim=12, vdim=16),
            "rnn": nn.LSTM(8, 4),
            "out": nn.Linear(8, 4),
        }
    )
    taken = {name: row.grouping.axis for name, row in plan(model, {"c1": "2:4"}).items() if row.pattern}
    assert taken == {
        "c1.weight": 1,
        "c3.weight": 1,
        "up.weight": 0,
        "attn.in_proj_weight": 1,
        "attn.out_proj.weight": 1,
        "cross.q_proj_weight": 1,
        "cross.k_proj_weight": 1,
        "cross.v_proj_weight": 1,
        "cross.out_proj.weight": 1,
        "rnn.weight_ih_l0": 1,
        "rnn.weight_hh_l0": 1,
    }


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Parameter(torch.randn(3, 6, 8))  # [experts, out, in]
        self.down = nn.Parameter(torch.randn(3, 8, 6))  # [experts, in, out]


def test_expert_weights_by_rule():
    rows = plan(Experts(), {"up": "2:4", "down": nm.Grouping(nm.Pattern("2:4"), 1)})
    assert rows["up"].grouping.axis == 2 and rows["down"].grouping.axis == 1
    assert rows["up"].grouping.view(Experts().up).shape == (3, 6, 2, 4)


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.cls, self.pos = nn.Parameter(torch.randn(1, 1, 8)), nn.Parameter(torch.randn(1, 4, 8))
        self.fc, self.head = nn.Linear(8, 8), nn.Linear(8, 4)


def test_a_rule_for_everything_does_not_take_tokens_and_positions():
    taken = {name for name, pattern in patterns(Tokens(), {"*": "1:4"}).items() if pattern}
    assert taken == {"fc.weight", "head.weight"}


def test_groupings_that_make_no_sense():
    with pytest.raises(PatternError, match="counted from the front"):
        nm.Grouping("2:4", -1)
    assert nm.Grouping("2:4", 1) == nm.Grouping(nm.Pattern("2:4"), 1)
    with pytest.raises(PlanError, match="no axis 5 in a 4-D weight"):
        plan(convnet(), {"conv": nm.Grouping("2:4", 5)})


class Tied(nn.Module):
    def __init__(self, embedding):
        super().__init__()
        self.first = nn.Embedding(8, 8) if embedding else nn.Linear(8, 8)
        self.second = nn.Linear(8, 8)
        self.second.weight = self.first.weight
        self.out = nn.Linear(8, 2)


def test_tied_weights_are_treated_together_or_refused():
    rows = plan(Tied(embedding=False))
    assert rows["first.weight"].pattern and rows["first.weight"].reason == "tied: first.weight, second.weight"
    assert "second.weight" not in rows
    # a rule may name either
    assert patterns(Tied(embedding=False), {"second": None})["first.weight"] is None
    with pytest.raises(PlanError, match=r"tied with second\.weight"):
        plan(Tied(embedding=True), {"second": "2:4"})
    refused = plan(Tied(embedding=True))["first.weight"]
    assert refused.pattern is None and "tied with second.weight" in refused.reason and "embedding" in refused.reason


def test_repeated_blocks_have_no_output_layer():
    blocks = nn.ModuleList(nn.ModuleDict({"fc": nn.Linear(8, 8)}) for _ in range(3))
    assert set(patterns(nn.ModuleDict({"blocks": blocks})).values()) == {"2:4"}


def test_the_last_of_equal_layers_in_a_row_is_an_output_layer():
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))
    assert patterns(model) == {"0.weight": "2:4", "2.weight": None}


def test_a_rule_that_another_overrides_is_no_error():
    assert set(patterns(convnet(), {"hidden": "1:4", "conv": "1:4", "hid*": None}).values()) >= {None, "1:4"}


def test_a_bad_pattern_names_its_rule():
    with pytest.raises(PatternError, match="quote the pattern") as caught:
        plan(convnet(), {"hidden": 124})
    assert caught.value.where == "rules['hidden']"


@pytest.mark.parametrize(
    ("rules", "text"),
    [
        ({"hiden": "2:4"}, "matches no module"),
        ({"stem": "2:4"}, "stem.weight: 3 input channels, not a multiple of 4"),
        ({"norm": "2:4"}, "matches no module"),
    ],
)
def test_rules_that_cannot_be_followed(rules, text):
    with pytest.raises(PlanError) as caught:
        plan(convnet(), rules)
    assert text in str(caught.value) and "rules[" in caught.value.where


def test_lazy_modules_are_refused():
    with pytest.raises(PlanError, match="run the model once"):
        plan(nn.Sequential(nn.LazyLinear(8)))


def test_wrappers_do_not_change_names():
    assert list(plan(torch.compile(convnet(), backend="eager"))) == list(plan(convnet()))
    assert list(plan(torch.optim.swa_utils.AveragedModel(convnet()))) == list(plan(convnet()))


def test_the_table_is_text_with_every_weight_and_reason():
    text = str(nm.Sparsifier(convnet(), nm.LBC("2:4")).plan)
    for name in ("stem.weight", "first convolution", "32x16x3x3", "combination", "3 of 5 weights sparse"):
        assert name in text
    rows = nm.Sparsifier(convnet(), nm.LBC("2:4")).plan.to_json()
    assert rows[1] == {
        "name": "conv.weight",
        "kind": "Conv2d",
        "shape": [32, 16, 3, 3],
        "pattern": "2:4",
        "axis": 1,
        "reason": "",
        "elimination": "combination",
        "combinations": 6,
        "weights": 4608,
    }


@pytest.mark.parametrize(
    ("groups", "pattern", "reason"),
    [
        (1, "2:4", ""),
        (2, "4:8", ""),
        (4, "4:8", "4 input channels in each convolution group, not a multiple of 8"),
        (16, "2:4", "1 input channels in each convolution group, not a multiple of 4"),
    ],
)
def test_groups_of_weights_stay_in_one_group_of_a_transposed_convolution(groups, pattern, reason):
    model = nn.ModuleDict({"up": nn.ConvTranspose2d(16, 16, 2, 2, groups=groups), "head": nn.Conv2d(16, 1, 1)})
    row = plan(model, pattern=pattern)["up.weight"]
    assert (row.reason, row.pattern is None) == (reason, bool(reason))
    if reason:  # an axis said by the user is no other
        with pytest.raises(PlanError, match=reason):
            plan(model, {"up": nm.Grouping(pattern, 0)})


def test_grouped_convolutions_count_the_inputs_of_one_group():
    model = nn.Sequential(nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 3, groups=2), nn.Conv2d(16, 16, 3, groups=8))
    rows = plan(nn.ModuleDict({"body": model, "head": nn.Linear(16, 5)}))
    assert rows["body.1.weight"].pattern and rows["body.2.weight"].reason == "2 input channels, not a multiple of 4"
