"""Hugging Face's accelerate with a sparsifier, by its plain calls: prepare, accumulate, save_state, load_state."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import nmlearn as nm
from nets import same
from processes import free_port, start

accelerate = pytest.importorskip("accelerate")

from accelerate.optimizer import AcceleratedOptimizer  # noqa: E402
from accelerate.state import AcceleratorState, GradientState  # noqa: E402

from accelerate_run import Run  # noqa: E402

METHODS = [nm.LBC("2:4"), nm.SRSTE("2:4"), nm.Gradual("2:4"), nm.LBC("2:4", scores="explicit", score_optimizer="adamw")]


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """accelerate keeps its settings in the process, and joins a process group that others left there."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.mark.parametrize("method", METHODS, ids=["lbc", "srste", "gradual", "lbc-adamw"])
def test_resumes_bit_for_bit(method, tmp_path):
    run = Run(method)
    run.epoch()
    run.accelerator.save_state(str(tmp_path))
    run.epoch()
    other = Run(method, seed=1)
    other.accelerator.load_state(str(tmp_path))
    assert other.sparsifier.step == 8
    other.epoch()
    assert same(run.state(), other.state())
    run.accelerator.load_state(str(tmp_path))  # back in the same process, over later masks and moments
    run.epoch()
    assert same(run.state(), other.state())
    run.sparsifier.finalize()


def test_nothing_in_the_file_is_executed(tmp_path):
    run = Run(nm.LBC("2:4"))
    run.epoch()
    run.accelerator.save_state(str(tmp_path))
    loaded = torch.load(tmp_path / "custom_checkpoint_0.pkl", weights_only=True)
    assert same(loaded, run.sparsifier.state_dict())


@pytest.mark.parametrize("options", [{}, {"mixed_precision": "bf16"}, {"gradient_accumulation_steps": 3}], ids=str)
def test_counts_the_steps_that_are_taken(options):
    each = -(-8 // options.get("gradient_accumulation_steps", 1))  # accelerate steps after the last batch, too
    run = Run(nm.LBC("2:4", end=1.0), steps=2 * each, **options)
    run.epoch()
    assert run.sparsifier.step == each
    run.epoch()
    assert run.sparsifier.progress == 1.0
    run.sparsifier.finalize()
    assert int((run.model[2].weight.unflatten(1, (-1, 4)) != 0).sum(-1).max()) == 2


def test_steps_that_the_scaler_skips_do_not_count():
    """mixed_precision="fp16" needs a GPU; its scaler works on a CPU as well."""
    accelerate.Accelerator(cpu=True)
    model = nn.Sequential(nn.Linear(16, 32), nn.Linear(32, 4))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, backoff_factor=2.0**-120)
    optimizer = AcceleratedOptimizer(torch.optim.AdamW(model.parameters()), scaler=scaler)
    sparsifier = nm.Sparsifier(model, nm.LBC("2:4")).attach(optimizer, 4)
    skipped = []
    for _ in range(5):
        before = model[0].weight.detach().clone()
        scaler.scale(100 * model(torch.randn(8, 16)).square().sum()).backward()
        optimizer.step()
        optimizer.zero_grad()
        skipped.append(optimizer.step_was_skipped)
        assert torch.equal(before, model[0].weight) == optimizer.step_was_skipped
    assert skipped == [True, False, False, False, False] and sparsifier.step == 4
    sparsifier.finalize()


@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_ranks_resume_bit_for_bit(kind, tmp_path):
    import ranks_accelerate

    start(2, getattr(ranks_accelerate, kind), free_port(), tmp_path)
    one, other = (torch.load(Path(tmp_path) / f"{i}.pt", weights_only=True) for i in range(2))
    assert same(one, other)
