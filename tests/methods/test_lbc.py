"""LBC: the factored form, the explicit form and the paper's own form agree in float64, step by step."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nmlearn as nm
from nets import batches, convnet, learn, sgd, train
from nmlearn.errors import ConfigError, StateError
from nmlearn.maths.schedules import Falling
from nmlearn.native import training
from papers_lbc import MaskedLayer
from papers_lbc import train as train_as_paper

SCHEDULES = [(0.0, 0.5, 3.0), (0.2, 0.8, 4.0), (0.4, 0.4, 3.0)]


def as_paper(model, n, m):
    model.conv = MaskedLayer(model.conv, n, m)
    model.hidden = MaskedLayer(model.hidden, n, m)
    return model


def groups_by_position(sparsifier, name, tensor):
    """``[out, in/M, kh, kw, C]`` in the paper's order of groups: rows, kernel positions, inputs."""
    if tensor.dim() == 5:
        tensor = tensor.permute(0, 2, 3, 1, 4)
    return tensor.reshape(-1, tensor.shape[-1])


@pytest.fixture(params=["kernels", "pytorch"])
def path(request, monkeypatch):
    """With the compiled kernels, where they are built, and without."""
    if request.param == "pytorch":
        monkeypatch.setattr(training, "_library", lambda: None)


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("pattern", ["2:4", "1:4", "3:4", "2:8", "4:8", "1:16"])
@pytest.mark.parametrize("scores", ["factored", "explicit"])
def test_is_the_papers_method(pattern, scores, schedule):
    """Momentum and weight decay on weights and scores, batch norm in between; losses, weights and survivors agree."""
    start, end, power = schedule
    steps, p = 30, nm.Pattern(pattern)
    data = batches(steps, dtype=torch.float64)
    ours = convnet().double()
    theirs = as_paper(copy.deepcopy(ours), p.n, p.m)
    # The paper decays scores as it decays weights.
    method = nm.LBC(pattern, start, end, power, scores=scores, weight_decay=1e-3)
    optimizer = sgd(ours)
    rules = {"grouped": None}
    sparsifier = nm.Sparsifier(ours, method, rules).attach(optimizer, steps)
    assert [row.name for row in sparsifier.plan.sparse] == ["conv.weight", "hidden.weight"]
    for (x, y), (loss, weights, alive) in zip(data, train_as_paper(theirs, sgd(theirs), data, schedule), strict=True):
        optimizer.zero_grad()
        mine = F.cross_entropy(ours(x), y)
        mine.backward()
        optimizer.step()
        assert mine.item() == pytest.approx(loss, abs=1e-12)
        for weight, expected in zip((ours.conv.weight, ours.hidden.weight), weights, strict=True):
            torch.testing.assert_close(weight.detach(), expected, rtol=0, atol=1e-11)
        for taken, expected in zip(sparsifier._weights, alive, strict=True):
            if "alive" in taken.state:
                assert torch.equal(groups_by_position(sparsifier, taken.name, taken.state["alive"]), expected)
            else:
                assert (expected.sum(-1) == 1).all()
    sparsifier.finalize()


@pytest.mark.parametrize("pattern", ["2:4", "4:8"])
def test_explicit_adamw_is_torchs_adamw_on_the_papers_form(pattern):
    steps, p = 20, nm.Pattern(pattern)
    data = batches(steps, dtype=torch.float64)
    ours = convnet().double()
    theirs = as_paper(copy.deepcopy(ours), p.n, p.m)
    adamw = lambda model: torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=0.05)  # noqa: E731
    method = nm.LBC(pattern, scores="explicit", score_optimizer="adamw", weight_decay=0.05)
    optimizer = adamw(ours)
    nm.Sparsifier(ours, method, {"grouped": None}).attach(optimizer, steps)
    expected = [loss for loss, _, _ in train_as_paper(theirs, adamw(theirs), data, SCHEDULES[0])]
    torch.testing.assert_close(train(ours, optimizer, data), expected, rtol=0, atol=1e-11)


def test_the_scores_follow_a_changing_learning_rate_of_their_own_group():
    """Two parameter groups with different, scheduled rates: still the paper's explicit scores."""
    steps = 24
    data = batches(steps, dtype=torch.float64)
    nets = [convnet().double(), convnet().double()]
    losses = []
    for model, scores in zip(nets, ("factored", "explicit"), strict=True):
        hidden = {id(p) for p in model.hidden.parameters()}
        rest = [p for p in model.parameters() if id(p) not in hidden]
        groups = [{"params": rest, "lr": 0.1}, {"params": model.hidden.parameters(), "lr": 0.01}]
        optimizer = torch.optim.SGD(groups, momentum=0.9)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        nm.Sparsifier(model, nm.LBC("4:8", scores=scores)).attach(optimizer, steps)
        losses.append(train(model, optimizer, data, after=lambda _, c=cosine: c.step()))
    torch.testing.assert_close(*losses, rtol=0, atol=1e-12)


@pytest.mark.parametrize("optimizer", ["SGD", "Adam", "AdamW", "RMSprop", "NAdam", "Adagrad", "Adadelta", "Rprop"])
def test_factored_is_explicit_under_any_weight_optimizer(optimizer):
    steps, losses = 16, []
    for scores in ("factored", "explicit"):
        model = convnet().double()
        chosen = getattr(torch.optim, optimizer)(model.parameters(), lr=1e-2)
        nm.Sparsifier(model, nm.LBC("2:4", scores=scores)).attach(chosen, steps)
        losses.append(train(model, chosen, batches(steps, dtype=torch.float64)))
    torch.testing.assert_close(*losses, rtol=0, atol=1e-10)


@pytest.mark.parametrize("options", [{"elimination": "combination"}, {"scores": "explicit"}])
def test_too_many_combinations_are_refused_before_training(options):
    with pytest.raises(ConfigError, match="too many to score or to list"):
        nm.Sparsifier(convnet(), nm.LBC("8:32", **options))


@pytest.mark.parametrize("scores", ["factored", "explicit"])
@pytest.mark.parametrize("pattern", ["2:4", "1:4", "4:8"])
def test_steps_as_small_as_in_a_fine_tuning_are_learned_from(pattern, scores):
    """A rate of 1e-5, weights of 0.03 and gradients of 1e-3: beside a score of 1/3 float32 would see none of them."""
    kept = []
    for dtype in (torch.float32, torch.float64):
        torch.manual_seed(0)
        layer = nn.Linear(32, 32, bias=False)
        with torch.no_grad():
            layer.weight.mul_(0.3)
        layer, gradients = layer.to(dtype), 1e-3 * torch.randn(20, 32, 32).to(dtype)
        optimizer = torch.optim.SGD(layer.parameters(), lr=1e-5)
        method = nm.LBC(pattern, end=1.0, scores=scores)
        sparsifier = nm.Sparsifier(layer, method, rules={"*": pattern}).attach(optimizer, 20)
        for gradient in gradients:
            layer.weight.grad = gradient.clone()
            optimizer.step()
        kept.append(sparsifier.masks()["weight"])
    assert (kept[0] == kept[1]).double().mean() > 0.99


def test_ties_keep_the_first_combination():
    """No gradient ever: all scores stay equal, and combination 0 is left in every group."""
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    sparsifier = nm.Sparsifier(model, nm.LBC("2:4"), {"0": "2:4"}).attach(optimizer, 4)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    for _ in range(4):
        optimizer.step()
    expected = torch.tensor([True, True, False, False]).repeat(8, 2)
    assert torch.equal(sparsifier.masks()["0.weight"], expected)


def test_groups_of_zeros_still_end_with_one_combination():
    model = convnet()
    with torch.no_grad():
        model.hidden.weight.zero_()
    sparsifier = learn(nm.LBC("2:8"), model=model)
    mask = sparsifier.masks()["hidden.weight"]
    assert (mask.view(-1, 8).sum(-1) == 2).all()
    sparsifier.finalize()


@pytest.mark.parametrize("elimination", ["auto", "weight"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_gradients_that_are_not_finite_raise_no_silent_mask(bad, elimination):
    model = convnet()
    optimizer = sgd(model)
    nm.Sparsifier(model, nm.LBC("2:4", start=0.3, elimination=elimination)).attach(optimizer, 20)
    data = batches(20)
    train(model, optimizer, data[:3])
    model.hidden.weight.grad[3, 5] = bad
    optimizer.step()
    with pytest.raises(StateError, match="NaN or infinite") as caught:
        train(model, optimizer, data[4:])
    assert "weight" in caught.value.where


@pytest.mark.parametrize("pattern", ["2:4", "1:8", "8:16", "6:32", "1:1", "4:4"])
def test_elimination_by_weight(pattern):
    model, p = convnet(), nm.Pattern(pattern)
    optimizer = sgd(model)
    sparsifier = nm.Sparsifier(model, nm.LBC(pattern, elimination="weight"), {"grouped": None}).attach(optimizer, 20)
    before = sparsifier.masks()["hidden.weight"]
    for x, y in batches(20):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        mask = sparsifier.masks()["hidden.weight"]
        left = mask.view(-1, p.m).sum(-1)
        count = Falling().count(sparsifier.progress, p.combinations)
        assert (left == left[0]).all() and not (mask & ~before).any()
        assert math.comb(int(left[0]), p.n) >= count > (math.comb(int(left[0]) - 1, p.n) if left[0] > p.n else 0)
        before = mask
    sparsifier.finalize()


def test_the_plan_says_which_elimination_each_weight_gets():
    plan = nm.Sparsifier(convnet(), nm.LBC("2:4"), {"hidden": "8:16"}).plan
    assert {row.name: row.elimination for row in plan.sparse} == {
        "conv.weight": "combination",
        "grouped.weight": "combination",
        "hidden.weight": "weight",
    }


def test_priors():
    model = convnet()
    w = model.hidden.weight.detach().clone()
    given = {name: p.detach().abs() for name, p in model.named_parameters()}
    starts = {
        "magnitude": w.square() / 2,
        "mapping": w.abs(),
        "function": w.neg(),
        "equal": torch.zeros_like(w),
    }
    priors = {"magnitude": "magnitude", "mapping": given, "function": lambda name, weight: -weight, "equal": "equal"}
    for kind, prior in priors.items():
        sparsifier = nm.Sparsifier(model, nm.LBC("2:4", prior=prior)).attach(sgd(model), 9)
        score = {taken.name: taken.state["score"] for taken in sparsifier._weights}["hidden.weight"]
        torch.testing.assert_close(score, starts[kind])
        sparsifier.detach()
    with pytest.raises(ConfigError, match=r"conv.weight needs a saliency of shape \(32, 16, 3, 3\)"):
        nm.Sparsifier(model, nm.LBC("2:4", prior={})).attach(sgd(model), 9)
    shape = (32, 16, 3, 3)
    for odd in (3, torch.zeros(2), torch.zeros(shape, dtype=torch.complex64), torch.zeros(shape, device="meta")):
        with pytest.raises(ConfigError, match=r"method.options.prior: .*conv.weight needs a saliency"):
            nm.Sparsifier(model, nm.LBC("2:4", prior={"conv.weight": odd})).attach(sgd(model), 9)
    lost = nm.LBC("2:4", prior=lambda name, weight: weight / 0)
    with pytest.raises(ConfigError, match=r"values for conv\.weight that are not finite"):
        nm.Sparsifier(model, lost).attach(sgd(model), 9)


def test_magnitude_prior_without_gradient_is_magnitude_pruning():
    model = nn.Sequential(nn.Linear(16, 8), nn.Linear(8, 2))
    w = model[0].weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    sparsifier = nm.Sparsifier(model, nm.LBC("2:4", prior="magnitude"), {"1": None}).attach(optimizer, 6)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    for _ in range(6):
        optimizer.step()
    expected = torch.zeros(8, 4, 4, dtype=torch.bool).scatter_(-1, w.abs().view(8, 4, 4).topk(2).indices, True)
    assert torch.equal(sparsifier.masks()["0.weight"].view(8, 4, 4), expected)


@pytest.mark.parametrize(
    "options",
    [
        {"scores": "other"},
        {"score_optimizer": "adamw"},
        {"scores": "explicit", "elimination": "weight"},
        {"prior": "wanda"},
        {"elimination": "none"},
    ],
)
def test_settings_that_make_no_sense(options):
    with pytest.raises(ConfigError) as caught:
        nm.LBC("2:4", **options)
    assert caught.value.where.startswith("method.options.") and caught.value.fix


@pytest.mark.parametrize(("pattern", "most"), [("2:4", 10.5), ("4:8", 18.0), ("8:16", 10.0)])
def test_state_bytes(pattern, most):
    model = convnet()
    optimizer = sgd(model)
    sparsifier = nm.Sparsifier(model, nm.LBC(pattern)).attach(optimizer, 8)
    weights = sum(row.weights for row in sparsifier.plan.sparse)
    assert sparsifier.state_bytes() <= most * weights
    train(model, optimizer, batches(8))
    assert sparsifier.state_bytes() <= weights  # after the schedule only the mask is left
    sparsifier.finalize()
    assert sparsifier.state_bytes() == 0
