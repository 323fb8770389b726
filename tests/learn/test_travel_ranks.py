"""States that travel, over two ranks: with ZeroRedundancyOptimizer, and next to torch.distributed.checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nets import same
from scale_checkpoints import SAVED
from scale_ranks import run_jobs
from travel_ranks import (
    dcp_resumed,
    dcp_saved,
    dcp_without_the_sparsifier,
    zero_of_a_dense_run,
    zero_resumed,
    zero_saved,
)

pytestmark = pytest.mark.distributed
LATER = pytest.param("srste", marks=pytest.mark.slow)


def check(uninterrupted: list[Any], others: list[list[Any]]) -> None:
    """Bit-equal, weights and masks on both ranks alike, and a state of the same size on each."""
    first, second = uninterrupted
    assert first["weights"] and first["masks"] and first["bytes"]
    assert all(same(first[part], second[part]) for part in ("weights", "masks"))
    assert all(same(resumed, uninterrupted) for resumed in others)


@pytest.mark.parametrize("method", ["lbc", LATER])
def test_a_state_travels_in_zero_redundancy_optimizer(method: str, tmp_path: Path) -> None:
    """Gathered and written by the first rank, read by both, before attach and after it."""
    reads = [(zero_resumed, method, tmp_path, at, first) for at in SAVED for first in (True, False)]
    uninterrupted, *resumed = run_jobs(2, [(zero_saved, method, tmp_path), *reads], tmp_path)
    check(uninterrupted, resumed)


def test_zero_redundancy_optimizer_of_a_dense_run_is_refused(tmp_path: Path) -> None:
    """On all ranks alike, though each remembers only the state of its own part."""
    [(first, second)] = run_jobs(2, [(zero_of_a_dense_run, tmp_path)], tmp_path)
    assert first == second
    assert "break their pattern" in first.pop("anew")
    assert first.keys() == {"step, attach", "load, attach", "attach, load"}
    for order, said in first.items():
        assert 'say resume="anew" to begin a schedule here' in said, order


@pytest.mark.parametrize("method", ["lbc", LATER])
@pytest.mark.parametrize("way", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_dcp_stores_no_key_of_ours(way: str, method: str, tmp_path: Path) -> None:
    """Nor does a template have one, so that it reads what it stored: bit-equal, with the sparsifier's own state."""
    jobs = [(dcp_saved, way, method, tmp_path), *((dcp_resumed, way, method, tmp_path, at) for at in SAVED)]
    uninterrupted, *others = run_jobs(2, [*jobs, (dcp_without_the_sparsifier, tmp_path)], tmp_path)
    *resumed, forgotten = others
    check(uninterrupted, resumed)
    assert all("loaded with the state of earlier steps and none of a sparsifier" in said for said in forgotten)
