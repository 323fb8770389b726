"""Parameters that share memory: found where values overlap, and only there."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import nmlearn as nm
from nets import batches, convnet, sgd, train
from nmlearn.errors import PlanError
from nmlearn.model.memory import shared


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.b(self.a(x.flatten(1))))
        return out


def test_weights_tied_by_data_stay_dense_with_the_reason() -> None:
    model = Pair()
    model.a.weight.data = model.b.weight.data
    plan = nm.Sparsifier(model, nm.LBC("2:4")).plan
    reasons = {row.name: row.reason for row in plan.rows}
    assert not plan.sparse and reasons["a.weight"].startswith("shares its memory with another parameter, b.weight:")
    assert "a.weight" in reasons["b.weight"] and "tie the Parameter itself" in reasons["b.weight"]
    with pytest.raises(PlanError, match="shares its memory"):
        nm.Sparsifier(model, nm.LBC("2:4"), {"a": "2:4"})


def test_a_tied_parameter_is_one_and_sparse() -> None:
    model = Pair()
    model.a.weight = model.b.weight
    assert [row.name for row in nm.Sparsifier(model, nm.LBC("2:4")).plan.sparse] == ["a.weight"]


def test_one_half_of_a_fused_weight_overlaps_the_whole() -> None:
    whole = nn.Parameter(torch.randn(8, 16))
    rows, columns = nn.Parameter(whole.data[:4]), nn.Parameter(whole.data[:, :8])
    found = shared([("whole", whole), ("rows", rows), ("columns", columns)])
    assert found == {id(whole): "rows", id(rows): "whole"}  # of columns, with gaps between them, nothing is said


def test_one_flat_buffer_without_overlaps_is_no_sharing() -> None:
    model = convnet()
    flat = nn.utils.parameters_to_vector(model.parameters()).detach()
    nn.utils.vector_to_parameters(flat, model.parameters())
    assert shared(model.named_parameters()) == {}
    optimizer = sgd(model)
    sparsifier = nm.Sparsifier(model, nm.LBC("2:4")).attach(optimizer, 8)
    train(model, optimizer, batches(8))
    assert sparsifier.finalize().weights == 3


def test_nothing_without_memory_shares_it() -> None:
    with torch.device("meta"):
        model = Pair()
    assert shared(model.named_parameters()) == {}
    assert shared([("a", nn.Parameter(torch.empty(0, 4))), ("b", nn.Parameter(torch.empty(0, 4)))]) == {}
