"""LBC under every optimizer of torch, and of the packages pytorch_optimizer and schedulefree where they are installed.

Every one keeps the pattern, after its ``eval()`` too where it has one, or is in a list here with the reason.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

import nmlearn as nm
from nets import batches
from nmlearn.errors import AttachError

# What optimizers of others warn of is their own, and 8 steps are few.
pytestmark = pytest.mark.filterwarnings("ignore")

STEPS = 8

# Refused at attach, with what the error says.
REFUSED = {
    "LBFGS": "evaluates its closure several times a step",
    "lbfgs": "evaluates its closure several times a step",
    "a2grad": "learning rate",  # it has none
    "alig": "learning rate",
    "SafeFP16Optimizer": "does not hold",  # it steps copies of the weights
}
# They do not step this network, with a sparsifier or without.
THEIRS = {
    "SparseAdam": "takes no dense gradients",
    "Muon": "takes no biases",
    "spectralsphere": "takes no biases",
    "lomo": "steps inside backward, and has no step()",
    "adalomo": "steps inside backward, and has no step()",
    "bsam": "fails in its own arithmetic where torch has foreach",
    "demo": "needs the package einops",
    "distributedmuon": "needs a process group",
}


def net() -> nn.Module:
    torch.manual_seed(0)
    sizes = [(16, 32), (32, 16), (16, 16), (16, 5)]  # one is square, as matrices of preconditioners are
    return nn.Sequential(*(layer for i, o in sizes for layer in (nn.Linear(i, o), nn.ReLU())))[:-1]


def by_kind(params: list[nn.Parameter], kind: Any) -> Any:
    """Groups as the optimizers of the Muon family want them."""
    wide = [{"params": [p for p in params if (p.dim() > 1) is use], "use_muon": use} for use in (True, False)]
    return kind(wide)


def dense(model: nn.Module, masks: dict[str, torch.Tensor]) -> list[str]:
    return [name for name, mask in masks.items() if model.get_parameter(name).detach()[~mask].any()]


def check(make: Callable[[nn.Module], Any], step: Callable[..., Any] | None = None) -> None:
    """Train with an optimizer to the end, in its own modes."""
    model = net()
    optimizer, before = make(model), [p.detach().clone() for p in model.parameters()]
    sparsifier = nm.Sparsifier(model, nm.LBC("2:4", end=0.5)).attach(optimizer, STEPS)
    modes = [getattr(optimizer, name, lambda: None) for name in ("train", "eval")]
    modes[0]()
    for x, y in batches(STEPS, (16,)):

        def closure(x: Any = x, y: Any = y) -> Any:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward(
                create_graph="hessian" in type(optimizer).__name__.lower() or hasattr(optimizer, "set_hessian")
            )
            return loss

        assert not dense(model, sparsifier.masks())
        closure()
        (step or (lambda each, _: each.step()))(optimizer, closure)
    masks = sparsifier.masks()
    assert sparsifier.step == STEPS
    sparsifier.finalize()
    for mode in (modes[1], *modes, modes[0]):
        mode()
        assert not dense(model, masks) and all(p.isfinite().all() for p in model.parameters())
    moved = [not torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True)]
    assert any(moved)


def verdict(name: str, make: Callable[[nn.Module], Any], step: Callable[..., Any] | None = None) -> None:
    if name in THEIRS:
        pytest.skip(THEIRS[name])
    if name in REFUSED:
        with pytest.raises(AttachError, match=REFUSED[name]):
            check(make, step)
        return
    check(make, step)


TORCHS = [each for each in vars(torch.optim).values() if isinstance(each, type) and issubclass(each, Optimizer)]


@pytest.mark.parametrize("kind", [each for each in TORCHS if each is not Optimizer], ids=lambda kind: kind.__name__)
def test_torchs_own(kind: Any) -> None:
    options = {"lr": 0.01} if kind is SGD else {}
    verdict(kind.__name__, lambda model: kind(model.parameters(), **options))


def package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


po, schedulefree = package("pytorch_optimizer"), package("schedulefree")
needs_po = pytest.mark.skipif(po is None, reason="needs the package pytorch_optimizer")
needs_schedulefree = pytest.mark.skipif(schedulefree is None, reason="needs the package schedulefree")

MUONS = ("muon", "adamuon", "normuon", "adago", "muonclip")


def made(name: str, model: nn.Module) -> Any:
    """An optimizer of the package with its own defaults, given what it cannot do without."""
    kind = po.load_optimizer(name)
    params = list(model.parameters())
    if name in MUONS:
        return by_kind(params, kind)
    if name == "ranger21":
        return kind(params, num_iterations=STEPS)
    if name == "adammini":
        return kind(model)
    return kind(params)


@needs_po
@pytest.mark.slow
@pytest.mark.parametrize("name", po.get_supported_optimizers() if po else [None])
def test_pytorch_optimizers(name: str) -> None:
    verdict(name, lambda model: made(name, model))


def with_closure(optimizer: Any, closure: Any) -> None:
    optimizer.step(closure)


def in_two(optimizer: Any, closure: Any) -> None:
    optimizer.first_step()
    closure()
    optimizer.second_step()


WRAPPERS: dict[str, tuple[Callable[[nn.Module], Any], Any]] = {
    "Lookahead": (lambda m: po.Lookahead(AdamW(m.parameters(), 1e-2), k=3), None),
    "Lookahead with momentum": (lambda m: po.Lookahead(momentum(m), k=3, pullback_momentum="pullback"), None),
    "ScheduleFreeWrapper": (lambda m: po.ScheduleFreeWrapper(AdamW(m.parameters(), 1e-2)), None),
    "TRAC": (lambda m: po.TRAC(AdamW(m.parameters(), 1e-2)), None),
    "Magma": (lambda m: po.Magma(AdamW(m.parameters(), 1e-2)), None),
    "OrthoGrad": (lambda m: po.OrthoGrad(AdamW(m.parameters(), 1e-2)), None),
    "SafeFP16Optimizer": (lambda m: po.SafeFP16Optimizer(AdamW(m.parameters(), 1e-2)), None),
    "SAM": (lambda m: po.SAM(m.parameters(), AdamW, lr=1e-2), with_closure),
    "SAM in two steps": (lambda m: po.SAM(m.parameters(), AdamW, lr=1e-2), in_two),
    "LookSAM": (lambda m: po.LookSAM(m.parameters(), AdamW, lr=1e-2), with_closure),
    "FriendlySAM": (lambda m: po.FriendlySAM(m.parameters(), AdamW, lr=1e-2), in_two),
    "WSAM": (lambda m: po.WSAM(m, m.parameters(), AdamW, lr=1e-2), with_closure),
}


def momentum(model: nn.Module) -> Optimizer:
    return SGD(model.parameters(), 0.05, momentum=0.9)


@needs_po
@pytest.mark.slow
@pytest.mark.parametrize("name", WRAPPERS)
def test_wrappers_of_pytorch_optimizer(name: str) -> None:
    verdict(name, *WRAPPERS[name])


@needs_schedulefree
@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["SGDScheduleFree", "AdamWScheduleFree", "RAdamScheduleFree", "AdamWScheduleFreeReference", "ScheduleFreeWrapper"],
)
def test_schedule_free_optimizers(name: str) -> None:
    kind = getattr(schedulefree, name)
    check(lambda m: kind(momentum(m) if name == "ScheduleFreeWrapper" else m.parameters()))
