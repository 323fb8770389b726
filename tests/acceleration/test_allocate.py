"""nm.allocate: budgets are kept and spent as well as any other choice would, and what cannot be done is said."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import nets
import nmlearn as nm
from nmlearn.errors import AttachError, ConfigError, DataError, KernelError, NMLearnError, PatternError, PlanError
from nmlearn.model.products import multiply_adds

PATTERNS = ("2:4", "1:4", "1:8")
IMAGE = torch.zeros(1, 3, 8, 8)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    made = nets.convnet()
    nets.train(made, nets.sgd(made), nets.batches(10))
    return made


def images() -> list[Tensor]:
    return [x for x, _ in nets.batches(2)]


def allocated(model: nn.Module, budget: Any, **how: Any) -> nm.Allocation:
    return nm.allocate(model, IMAGE, budget=budget, patterns=PATTERNS, **how)


def magnitude(parameter: Tensor, pattern: str | None, axis: int = 1) -> float:
    """The share of squares that magnitude prunes, in float64."""
    if pattern is None:
        return 0.0
    squares = parameter.detach().double().square().movedim(axis, -1)
    groups = squares.unflatten(-1, (-1, nm.Pattern(pattern).m)).sort(-1).values
    return float(groups[..., : -nm.Pattern(pattern).n].sum() / squares.sum())


def kept_parameters(model: nn.Module, chosen: dict[str, str | None]) -> float:
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    shares = {name: 1.0 if pattern is None else nm.Pattern(pattern).density for name, pattern in chosen.items()}
    return sum(size * shares.get(name, 1.0) for name, size in sizes.items()) / sum(sizes.values())


def kept_flops(model: nn.Module, chosen: dict[str, str | None]) -> float:
    names = [name for name, p in model.named_parameters() if p.dim() > 1]
    sizes = multiply_adds(model, lambda: model(IMAGE), names)
    shares = {name: 1.0 if pattern is None else nm.Pattern(pattern).density for name, pattern in chosen.items()}
    return sum(size * shares.get(name, 1.0) for name, size in sizes.items()) / sum(sizes.values())


def texts(allocation: nm.Allocation) -> dict[str, str | None]:
    return {name: None if pattern is None else str(pattern) for name, pattern in allocation.items()}


@pytest.mark.parametrize("share", [0.3, 0.45, 0.7, 0.9])
@pytest.mark.parametrize(("budget", "kept"), [("parameters", kept_parameters), ("flops", kept_flops)])
def test_no_other_choice_within_the_budget_loses_less(model: nn.Module, budget: str, kept: Any, share: float) -> None:
    names = ["conv.weight", "grouped.weight", "hidden.weight"]
    weights = dict(model.named_parameters())
    losses = {(name, p): magnitude(weights[name], p) for name in names for p in (None, *PATTERNS)}
    best = math.inf
    for choice in itertools.product((None, *PATTERNS), repeat=3):
        chosen = dict(zip(names, choice, strict=True))
        if kept(model, chosen) <= share:
            best = min(best, math.fsum(losses[one] for one in chosen.items()))
    found = allocated(model, {budget: share})
    assert list(found) == names and found.criterion == "magnitude"
    assert found.reached == pytest.approx(kept(model, texts(found))) and found.reached <= share
    assert found.loss == pytest.approx(best, rel=1e-5)
    assert found.loss == pytest.approx(math.fsum(losses[one] for one in texts(found).items()), rel=1e-5)


def test_a_sparsifier_takes_it(model: nn.Module) -> None:
    found = allocated(model, {"parameters": 0.6}, rules={"grouped": None})
    assert dict(found)["grouped"] is None and len(found) == 3
    sparsifier = nm.Sparsifier(model, nm.LBC("2:4"), rules=found)
    planned = {row.name: row.pattern for row in sparsifier.plan.rows}
    assert planned == {row.name: row.pattern for row in found.rows}
    assert planned["grouped.weight"] is None and planned["conv.weight"] is not None


def test_bytes_are_those_of_a_saved_file(model: nn.Module, tmp_path: Any) -> None:
    found = allocated(model, {"bytes": 0.4})
    assert 0.3 < found.reached <= 0.4
    sparse = nets.convnet()
    sparse.load_state_dict(model.state_dict())
    nm.Sparsifier(sparse, nm.OneShot("2:4"), rules=found).apply()
    nm.save(sparse, tmp_path / "model.safetensors")
    from safetensors import safe_open

    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        names = list(file.keys())
        saved = sum(file.get_tensor(name).nbytes for name in names)
    assert saved == pytest.approx(found.reached * sum(t.nbytes for t in model.state_dict().values()))


@pytest.mark.parametrize("criterion", ["output", "model"])
def test_what_the_data_say_decides(criterion: str) -> None:
    """Inputs that are always 0 cost nothing, whatever their weights are; of two layers alike, that one is pruned."""

    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.live, self.dead, self.head = nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.live(x).relu() + self.dead(x * (torch.arange(32) % 8 == 0)))

    model = Halves()
    with torch.no_grad():
        model.dead.weight *= 2
    share = (32 * 32 * 9 / 8 + 32 * 4 + 68) / (2 * 32 * 32 + 32 * 4 + 68)
    batches = [torch.randn(64, 32)]
    found = nm.allocate(model, budget={"parameters": share}, patterns=["1:8"], criterion=criterion, batches=batches)
    assert texts(found) == {"live.weight": None, "dead.weight": "1:8"} and found.loss < 1e-9
    assert found.reached == share


def test_the_default_criterion_follows_from_what_is_given(model: nn.Module) -> None:
    x = images()
    seen = nm.calibrate(model, x)
    given: list[tuple[dict[str, Any], str]] = [({}, "magnitude"), ({"batches": x}, "model"), ({"seen": seen}, "output")]
    given.append(({"batches": x, "seen": seen}, "model"))
    for how, criterion in given:
        assert allocated(model, {"parameters": 0.5}, **how).criterion == criterion
    assert allocated(model, {"parameters": 0.5}, batches=iter(x), criterion="output").criterion == "output"


def test_the_model_stays_as_it_is(model: nn.Module) -> None:
    before, modes = nets.snapshot(model), [m.training for m in model.modules()]
    for budget in ("parameters", "flops"):
        allocated(model, {budget: 0.5}, batches=images())
    assert nets.same(before, nets.snapshot(model)) and modes == [m.training for m in model.modules()]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_rules_are_kept_and_count(model: nn.Module) -> None:
    rules = {"conv": "1:8", "head": "2:4", "hidden": None}
    with pytest.raises(PatternError):  # five outputs of 32 inputs fit, three channels do not
        allocated(model, {"parameters": 0.4}, rules={"stem": "nonsense"})
    found = allocated(model, {"parameters": 0.4}, rules=rules)
    assert {name: found[name] for name in rules} == rules and list(found) == [*rules, "grouped.weight"]
    planned = {row.name: row.pattern for row in nm.Sparsifier(model, nm.OneShot("2:4"), rules=found).plan.rows}
    assert [str(planned[f"{name}.weight"]) for name in rules] == ["1:8", "2:4", "None"]
    assert found.reached == pytest.approx(kept_parameters(model, {name: p and str(p) for name, p in planned.items()}))
    reasons = {row.name: row.reason for row in found.rows}
    assert reasons["conv.weight"] == "a rule" and reasons["hidden.weight"] == "rule 'hidden'"


def test_a_pattern_is_left_out_where_it_does_not_fit() -> None:
    model = nn.Sequential(nn.Linear(24, 32), nn.Linear(32, 24), nn.Linear(24, 32), nn.Linear(32, 3))
    found = nm.allocate(model, budget={"parameters": 0.2})  # 1:16 fits one of the three
    assert texts(found) == {"0.weight": "1:8", "1.weight": "1:8", "2.weight": "1:8"} or found["1.weight"] is not None
    assert {row.name: [str(p) for p in row.losses] for row in found.rows[:2]} == {
        "0.weight": ["2:4", "1:4", "1:8"], "1.weight": ["2:4", "1:4", "1:8", "1:16"],
    }  # fmt: skip
    assert found.rows[0].reason == "not 1:16: 24 input channels, not a multiple of 16" and not found.rows[1].reason
    narrow = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3))
    assert [str(one.pattern) for one in nm.allocate(narrow, budget={"parameters": 0.5}).uniform] == [
        "2:4",
        "1:4",
        "1:8",
    ]
    odd = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 3))
    with pytest.raises(PlanError, match=r"1\.weight: not 2:4, 1:4: 5 input channels, not a multiple of 4; not 1:8"):
        nm.allocate(odd, budget={"parameters": 0.5})
    with pytest.raises(PatternError, match=r"1:16: it fits no weight: 0\.weight: 8 input channels"):
        nm.allocate(narrow, budget={"parameters": 0.5}, patterns=["2:4", "1:16"])


def test_tied_weights_count_once_and_their_products_twice() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.other, self.head = (nn.Linear(16, 16, bias=False) for _ in range(4))
            self.two.weight = self.one.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.other(self.two(self.one(x))))

    model, x = Tied(), torch.zeros(1, 16)
    rows = {budget: nm.allocate(model, x, budget={budget: 0.8}).rows for budget in ("parameters", "flops")}
    assert [row.costs[None] for row in rows["parameters"]] == pytest.approx([1 / 3, 1 / 3, 1 / 3])
    assert [row.costs[None] for row in rows["flops"]] == pytest.approx([2 / 4, 1 / 4, 1 / 4])
    assert "tied: one.weight, two.weight" in rows["flops"][0].reason


def test_weights_whose_inputs_cannot_be_seen_stay_dense_with_the_reason() -> None:
    model, x = nets.Layers(), torch.randn(2, 3, 16)
    every = nm.allocate(model, budget={"parameters": 0.6})
    assert all(row.losses for row in every.rows if row.name in ("rnn.weight_ih_l0", "up.weight"))
    found = nm.allocate(model, budget={"parameters": 0.8}, batches=[x])
    assert found["rnn.weight_ih_l0"] is None and found["up.weight"] is None
    reasons = {row.name: row.reason for row in found.rows}
    assert "its inputs cannot be seen" in reasons["rnn.weight_ih_l0"] and "transposed" in reasons["up.weight"]
    assert nm.Sparsifier(model, nm.OneShot("2:4"), rules=found).plan.rows
    seen = nm.calibrate(model, [x], plan=nm.Sparsifier(model, nm.OneShot("2:4"), rules={"conv1": None}).plan)
    found = nm.allocate(model, budget={"parameters": 0.8}, seen=seen)
    assert {row.name: row.reason for row in found.rows}["conv1.weight"] == "calibration was not asked to see it"


def test_the_table_shows_the_choice_and_what_else_there_was(model: nn.Module) -> None:
    found = allocated(model, {"parameters": 0.4})
    lines = str(found).splitlines()
    assert lines[0].split() == ["weight", "shape", "pattern", "parameters", "loss", "2:4", "1:4", "1:8", "reason"]
    row = next(row for row in found.rows if row.name == "conv.weight")
    cells = next(line.split() for line in lines if line.startswith("conv.weight"))
    assert cells[1:3] == ["32x16x3x3", str(row.pattern)] and float(cells[3]) == pytest.approx(100 * row.cost, abs=0.005)
    assert [float(cell) for cell in cells[5:]] == pytest.approx([row.loss, *row.losses.values()], rel=0.005)
    assert "output layer: dense by default" in lines[5] and "first convolution" in lines[1]
    assert lines[6] == repr(found).removeprefix("Allocation(").removesuffix(")")
    assert f"{100 * found.reached:.1f} % of parameters (asked for: 40.0 % of parameters)" in lines[6]
    for line, one in zip(lines[7:10], found.uniform, strict=True):
        assert line.startswith(f"{one.pattern} wherever it fits: ")
        uniform = dict.fromkeys(("conv.weight", "grouped.weight", "hidden.weight"), str(one.pattern))
        assert one.reached == pytest.approx(kept_parameters(model, uniform))
        losses = [magnitude(dict(model.named_parameters())[name], p) for name, p in uniform.items()]
        assert one.loss == pytest.approx(sum(losses), rel=1e-5)


def test_names_that_look_like_globs_mean_themselves() -> None:
    model = nn.ModuleDict({"a[b]*": nn.Linear(16, 16), "ab": nn.Linear(16, 16), "head": nn.Linear(16, 2)})
    found = nm.allocate(model, budget={"parameters": 0.9})
    planned = nm.Sparsifier(model, nm.OneShot("2:4"), rules=found).plan.rows
    assert [row.pattern for row in planned] == [row.pattern for row in found.rows]
    assert {row.pattern is None for row in planned[:2]} == {True, False}  # one is enough for the budget


REFUSED: list[tuple[dict[str, Any], type[NMLearnError], str]] = [
    ({"budget": 0.3}, ConfigError, "budget: given 0.3: it is not one budget; give one of parameters, bytes, flops"),
    ({"budget": {}}, ConfigError, "it is not one budget"),
    ({"budget": {"flops": 0.3, "bytes": 0.3}}, ConfigError, "it is not one budget"),
    ({"budget": {"flop": 0.3}}, ConfigError, "did you mean 'flops'"),
    ({"budget": {"flops": "half"}}, ConfigError, "'half': it is no positive number"),
    ({"budget": {"flops": True}}, ConfigError, "True: it is no positive number"),
    ({"budget": {"flops": math.nan}}, ConfigError, "nan: it is no positive number"),
    ({"budget": {"flops": -0.1}}, ConfigError, "it is no positive number"),
    ({"budget": {"parameters": 1.0}}, ConfigError, "the dense model keeps it"),
    ({"budget": {"speedup": 1.0}}, ConfigError, "the dense model is as fast"),
    ({"example": None, "budget": {"flops": 0.3}}, ConfigError, "example: given none: a budget of flops is for one"),
    ({"example": None, "budget": {"speedup": 2}}, ConfigError, "a budget of speedup is for one"),
    ({"example": torch.zeros(2, 2), "budget": {"flops": 0.3}}, KernelError, r"example: given float32 \[2, 2\]"),
    ({"criterion": "outputs"}, ConfigError, "did you mean 'output'"),
    ({"criterion": "model"}, ConfigError, "it runs the model on batches"),
    ({"criterion": "output"}, ConfigError, "it needs the inputs of layers"),
    ({"batches": []}, ConfigError, "no batch"),
    ({"batches": [torch.zeros(2, 2)]}, ConfigError, "the model's forward said"),
    ({"patterns": ["2:4", "x"]}, PatternError, "'x': this is not a pattern"),
    ({"patterns": ["4:4"]}, PatternError, "dense is always a choice"),
    ({"patterns": []}, PatternError, "there is nothing to choose from"),
    ({"patterns": ["1:5"]}, PatternError, "it fits no weight: conv.weight: 16 input channels, not a multiple of 5"),
    ({"rules": {"": None}}, PlanError, "there is no weight to choose a pattern for: stem.weight: rule ''"),
    ({"rules": {"convolution": None}}, PlanError, "it matches no module"),
    ({"rules": {"conv": "1:8"}, "budget": {"parameters": 0.95}}, ConfigError, "every weight that is chosen left dense"),
]  # fmt: skip


@pytest.mark.parametrize(("how", "kind", "said"), REFUSED, ids=[said[:40] for _, _, said in REFUSED])
def test_refusals(model: nn.Module, how: dict[str, Any], kind: type[NMLearnError], said: str) -> None:
    example = how.get("example", IMAGE)
    rest = {"budget": {"parameters": 0.4}, "patterns": PATTERNS} | {k: v for k, v in how.items() if k != "example"}
    with pytest.raises(kind, match=said):
        nm.allocate(model, example, **rest)


@pytest.mark.parametrize("budget", ["parameters", "flops", "bytes"])
def test_a_budget_out_of_reach_names_the_best_one_which_is_then_reached(model: nn.Module, budget: str) -> None:
    with pytest.raises(ConfigError, match=r"these patterns come to 0\.\d+ at best") as caught:
        allocated(model, {budget: 0.01})
    best = float(caught.value.wrong.split("come to ")[1].split()[0])
    found = allocated(model, {budget: best})
    assert {str(pattern) for pattern in found.values()} == {"1:8"} and found.reached <= best < found.reached + 1e-4
    with pytest.raises(ConfigError, match="at best"):
        allocated(model, {budget: best - 1e-4})


def test_models_that_others_hold_are_refused(model: nn.Module) -> None:
    with torch.device("meta"):
        empty = nets.convnet()
    with pytest.raises(AttachError, match=r"conv\.weight.*meta device"):
        allocated(empty, {"parameters": 0.4})
    wrapped = type("DistributedDataParallel", (nn.Module,), {})()
    wrapped.module = model
    with pytest.raises(AttachError, match="allocate on one rank"):
        allocated(wrapped, {"parameters": 0.4})


def test_losses_that_are_not_finite_are_refused() -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 4))
    with torch.no_grad():
        model[1].weight.fill_(1e30)
    with pytest.raises(DataError, match=r"1\.weight: given criterion .magnitude.: its losses are nan"):
        nm.allocate(model, budget={"parameters": 0.5})
