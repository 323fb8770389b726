"""NMCallback on two gloo processes: DDP and FSDP 2, resumed bit for bit."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

import ranks_trainer
from processes import free_port, start

WRITTEN = {"ddp": ["checkpoint-4", "checkpoint-8", "checkpoint-8"], "fsdp": ["checkpoint-4"]}


@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.parametrize("kind", WRITTEN)
def test_two_ranks_resume_bit_for_bit(kind, tmp_path):
    start(2, getattr(ranks_trainer, kind), free_port(), tmp_path)
    one, other = (torch.load(tmp_path / f"{i}.pt", weights_only=True) for i in range(2))
    assert one["logs"] == other["logs"] == [[0.5, 0.5], [0.5, 0.5] if kind == "ddp" else [0.5]]
    assert one["written"] == WRITTEN[kind] and other["written"] == [], "the first process writes, and no other"
    for name, weight in one["weights"].items():
        assert torch.equal(weight, other["weights"][name])
        if "layer" in name and weight.dim() == 2:
            assert int((weight.unflatten(1, (-1, 4)) != 0).sum(-1).max()) == 2, name
