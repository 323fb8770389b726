"""Running Gram matrices while a model trains, and LBC's schedule with other scores and with compensation."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import nets
import nmlearn as nm
from calibration_models import chain, normal
from nmlearn.errors import AttachError, ConfigError
from nmlearn.methods.method import GRAM

CRITERIA = ("learned", "magnitude", "product", "fisher", "output")
FOLLOWING = nm.LBC("2:4", criterion="output", compensation="pcg")


def started(method: nm.Method, *widths: int, steps: int = 10) -> tuple[nn.Module, torch.optim.Optimizer, nm.Sparsifier]:
    model = chain(*widths)
    optimizer = nets.sgd(model)
    return model, optimizer, nm.Sparsifier(model, method).attach(optimizer, steps)


def grams(sparsifier: nm.Sparsifier) -> dict[str, Tensor]:
    weights = sparsifier.state_dict()["weights"]
    return {name: entry["state"][GRAM] for name, entry in weights.items() if GRAM in entry["state"]}


def running(calls: list[Tensor]) -> Tensor:
    """What a running Gram matrix has come to, in float64, by its definition."""
    total = torch.zeros(calls[0].shape[-1], calls[0].shape[-1], dtype=torch.float64)
    for x in calls:
        flat = x.double().flatten(0, -2)
        total = 0.9 * total + 0.1 * flat.mT @ flat / len(flat)
    return total


def test_training_calls_are_added_and_no_others() -> None:
    model, _, sparsifier = started(FOLLOWING, 8, 16, 4)
    name = next(iter(grams(sparsifier)))
    calls = [normal(5, 8), normal(3, 7, 8)]
    model(calls[0])
    with torch.no_grad():
        model(normal(5, 8))
    model.eval()(normal(5, 8))
    model.train()(calls[1])
    model(torch.full((2, 8), torch.nan))
    torch.testing.assert_close(grams(sparsifier)[name][0].double(), running(calls), rtol=1e-5, atol=1e-6)


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.second(self.first(x))


def test_masked_tokens_do_not_count() -> None:
    model = Masked()
    optimizer = nets.sgd(model)
    sparsifier = nm.Sparsifier(model, FOLLOWING).attach(optimizer, 10)
    x, mask = normal(3, 5, 8), torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]])
    model(x, attention_mask=mask)
    seen = grams(sparsifier)["first.weight"][0].double()
    torch.testing.assert_close(seen, running([x[mask.bool()]]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("model", [nets.convnet(), chain(16, 16, 16, 5)], ids=["convolutions", "linear"])
@pytest.mark.parametrize("pattern", ["1:4", "2:4"])
def test_resuming_is_bit_equal(model: nn.Module, pattern: str) -> None:
    shape = (3, 8, 8) if isinstance(model, nets.ConvNet) else (16,)
    data = nets.batches(10, shape)
    method = nm.LBC(pattern, criterion="output", compensation="pcg")
    ends = []
    for stop in (0, 3):
        net = copy.deepcopy(model)
        optimizer = nets.sgd(net)
        sparsifier = nm.Sparsifier(net, method).attach(optimizer, 10)
        nets.train(net, optimizer, data[:stop])
        if stop:
            saved = copy.deepcopy((net.state_dict(), optimizer.state_dict()))
            net, optimizer = copy.deepcopy(model), None
            optimizer = nets.sgd(net)
            net.load_state_dict(saved[0])
            optimizer.load_state_dict(saved[1])
            sparsifier = nm.Sparsifier(net, method).attach(optimizer, 10)
        nets.train(net, optimizer, data[stop:])
        sparsifier.finalize()
        ends.append(nets.snapshot(net))
    assert nets.same(*ends)


def test_the_matrices_go_with_the_schedule() -> None:
    model, optimizer, sparsifier = started(FOLLOWING, 16, 16, 5)
    assert sparsifier.state_bytes() > 4 * 16 * 16
    nets.train(model, optimizer, nets.batches(6, (16,)))
    assert sparsifier.ended and not grams(sparsifier) and sparsifier.state_bytes() < 4 * 16 * 16
    nets.train(model, optimizer, nets.batches(4, (16,)))
    sparsifier.finalize()


def outputs_lost(compensation: str) -> float:
    """How far the outputs of one layer move in a whole schedule in which nothing is trained."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 4))
    before, optimizer = copy.deepcopy(model), torch.optim.SGD(model.parameters(), 0.0)
    x = normal(64, 16) @ torch.randn(16, 16)
    method = nm.LBC("1:4", criterion="magnitude", compensation=compensation)
    sparsifier = nm.Sparsifier(model, method).attach(optimizer, 8)
    for _ in range(8):
        model(x).sum().backward()
        optimizer.step()
    sparsifier.finalize()
    return float((model[0](x) - before[0](x)).detach().square().sum())


def test_survivors_take_over_what_was_removed() -> None:
    assert outputs_lost("pcg") < 0.7 * outputs_lost("none")


def test_compensation_is_least_squares_on_the_support() -> None:
    """Against the normal equations of each row in float64: at one removal, 8 inputs, which ten steps solve."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 4)).double()
    x, optimizer = normal(40, 8).double(), torch.optim.SGD(model.parameters(), 0.0)
    dense = model[0].weight.detach().clone()
    method = nm.LBC("2:4", end=0.0, criterion="magnitude", compensation="pcg")
    sparsifier = nm.Sparsifier(model, method, {"1": None}).attach(optimizer, 4)
    model(x).sum().backward()
    optimizer.step()
    sparsifier.finalize()
    for row, now in zip(dense, model[0].weight, strict=True):
        kept = now != 0
        best = torch.linalg.lstsq(x[:, kept], x @ row).solution
        torch.testing.assert_close(now[kept].detach(), best, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("criterion", CRITERIA[1:])
def test_each_criterion_keeps_what_its_formula_says(criterion: str) -> None:
    """All removals fall on the third step, so each group keeps its two best by the formula."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 4)).double()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    method = nm.LBC("2:4", start=0.6, end=0.7, criterion=criterion)
    sparsifier = nm.Sparsifier(model, method, {"2": None}).attach(optimizer, 3)
    first, calls, average = model[0].weight, [], torch.zeros(6, 8, dtype=torch.float64)
    for _ in range(3):
        calls.append(normal(12, 8).double())
        optimizer.zero_grad()
        model(calls[-1]).square().sum().backward()
        w, g = first.detach().clone(), first.grad.clone()
        average = 0.9 * average + 0.1 * ((w * g).abs() if criterion == "product" else g.square())
        optimizer.step()
        dense = w - 0.05 * g
    gram = running(calls)
    damped = gram + 0.01 * gram.diagonal().mean() * torch.eye(8, dtype=torch.float64)
    scores = {
        "magnitude": dense.square(),
        "product": average,
        "fisher": dense.square() * average,
        "output": dense.square() / damped.inverse().diagonal(),
    }[criterion]
    best = scores.view(6, 2, 4).topk(2).indices
    kept = torch.zeros(6, 2, 4, dtype=torch.bool).scatter_(-1, best, True).view(6, 8)
    assert torch.equal(sparsifier.masks()["0.weight"], kept)
    sparsifier.finalize()


@pytest.mark.parametrize("compensation", ["none", "pcg"])
@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_choice_ends_in_the_pattern(criterion: str, compensation: str) -> None:
    for pattern in ("2:4", "1:16", "8:16"):
        model = nets.convnet()
        optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
        method = nm.LBC(pattern, criterion=criterion, compensation=compensation)
        sparsifier = nm.Sparsifier(model, method).attach(optimizer, 6)
        nets.train(model, optimizer, nets.batches(6))
        assert sparsifier.finalize().density == pytest.approx(nm.Pattern(pattern).density)


def test_what_cannot_be_followed_is_refused() -> None:
    model = nn.Sequential(nn.LSTM(8, 8))
    with pytest.raises(AttachError, match=r"own code.*compensation"):
        nm.Sparsifier(model, FOLLOWING).attach(nets.sgd(model), 4)
    for options in ({"scores": "explicit"}, {"prior": "magnitude"}):
        with pytest.raises(ConfigError, match="criterion"):
            nm.LBC("2:4", criterion="fisher", **options)
    for option in ("criterion", "compensation"):
        with pytest.raises(ConfigError, match=option):
            nm.LBC("2:4", **{option: "other"})


def test_states_of_the_papers_form_say_nothing_of_the_choice() -> None:
    plain: dict[str, Any] = nm.LBC("2:4").describe()
    assert "criterion" not in plain and "compensation" not in plain
    assert FOLLOWING.describe()["criterion"] == "output"
