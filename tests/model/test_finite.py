"""Weights that are NaN or infinite: one warning that names them, from finalize and from save."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import nmlearn as nm
from nmlearn.model.finite import warn_of_not_finite

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2, torch.complex64]


def message(tensors: dict[str, Tensor], weights: dict[str, Tensor] | None = None) -> str:
    """The warning's text; empty without a warning."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_not_finite(tensors, weights)
    assert len(caught) <= 1
    return str(caught[0].message) if caught else ""


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_one_value_is_enough(dtype: torch.dtype, value: float) -> None:
    fine = torch.linspace(-100, 100, 15).to(dtype).view(3, 5)
    assert message({"w": fine}) == ""
    for place in ((0, 0), (1, 3), (2, 4)):
        bad = fine.to(torch.complex64 if dtype.is_complex else torch.float32, copy=True)
        bad[place] = value * 1j if dtype.is_complex and value == value else value
        for each in (bad.to(dtype), bad.to(dtype).t()):
            assert message({"fine": fine, "w": each}).startswith("1 of 2 tensors have NaN or infinite values: 'w'. ")


def test_only_weights_may_not_be_minus_infinity() -> None:
    mask = torch.full((4, 4), -torch.inf).triu(1)
    assert message({"mask": mask}, {}) == "" and "'mask'" in message({"mask": mask})
    for value in (torch.inf, torch.nan):
        assert "'mask'" in message({"mask": mask + value}, {})


def test_what_has_no_values_or_no_such_values_is_left_out() -> None:
    others = [torch.empty(0, 3), torch.empty(3, device="meta"), torch.tensor([1]), torch.tensor([True]), torch.eye(2)]
    assert message({str(i): each for i, each in enumerate(others)}) == ""
    assert message({"coo": torch.eye(2).to_sparse()}) == ""


def test_many_are_counted_and_names_obey_nobody() -> None:
    text = message({f"\x1b[2J{i}": torch.tensor([torch.nan]) for i in range(9)})
    assert text.startswith(r"9 of 9 tensors have NaN or infinite values: '\x1b[2J0', ") and "\x1b" not in text
    assert r"'\x1b[2J5' and 3 more. What" in text


def net() -> nn.Sequential:
    layers = [("fc", nn.Linear(8, 8)), ("norm", nn.BatchNorm1d(8)), ("head", nn.Linear(8, 2))]
    return nn.Sequential(OrderedDict(layers))


def test_finalize_and_save_name_them(tmp_path: Path) -> None:
    model = net()
    sparsifier = nm.Sparsifier(model, nm.OneShot("2:4"), rules={"head": None})
    sparsifier.apply()
    with torch.no_grad():
        model.fc.weight[0][model.fc.weight[0] != 0] = torch.nan
        model.head.bias[1] = torch.inf
        model.norm.running_var[2] = torch.nan
    with pytest.warns(UserWarning, match=r"2 of 6 tensors .*: 'fc\.weight', 'head\.bias'\. .*learning rate") as caught:
        sparsifier.finalize()
    assert caught[0].filename == __file__
    for state in (model, model.state_dict()):
        with pytest.warns(UserWarning, match=r"3 of 9 .*: 'fc\.weight', 'norm\.running_var', 'head\.bias'\.") as caught:
            nm.save(state, tmp_path / "m.safetensors")
        assert len(caught) == 1 and caught[0].filename == __file__
    assert nm.load(tmp_path / "m.safetensors")["fc.weight"].isnan().sum() == 4


def test_finalize_names_those_of_an_average(tmp_path: Path) -> None:
    model = net()
    sparsifier = nm.Sparsifier(model, nm.OneShot("2:4"), rules={"head": None})
    sparsifier.apply()
    average = torch.optim.swa_utils.AveragedModel(model)
    average.module.fc.weight.data.fill_(torch.nan)
    with pytest.warns(UserWarning, match=r"1 of 1 tensors .*: 'fc\.weight'"):
        sparsifier.finalize(average)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sparsifier.finalize()
        model.register_buffer("mask", torch.full((4, 4), -torch.inf).triu(1))
        nm.save(model, tmp_path / "m.safetensors")
