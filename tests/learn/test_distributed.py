"""DDP and FSDP2 on gloo processes: every rank decides alike, and as one process does on the whole batch."""

import pytest
import torch
import torch.multiprocessing as mp

import nmlearn as nm
import ranks

pytestmark = pytest.mark.distributed
METHODS = {
    "lbc": nm.LBC("2:4"),
    "srste": nm.SRSTE("2:4"),
    "lbc-weight": nm.LBC("8:16"),
    "gradual": nm.Gradual("1:4"),
    "oneshot": nm.OneShot("1:4", at=0.5),
}


def check(kind, name, world, folder):
    mp.spawn(ranks.rank, (world, kind, METHODS[name], folder), nprocs=world)
    first, *others = (torch.load(folder / f"{i}.pt", weights_only=True) for i in range(world))
    expected = ranks.one_process(METHODS[name])
    for name, weight in expected.items():
        assert all(torch.equal(first[name], other[name]) for other in others)
        torch.testing.assert_close(first[name], weight, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_ranks_are_one_process(kind, tmp_path):
    """Also with the sparsifier saved and loaded by another in the middle of the schedule."""
    check(kind, "lbc", 2, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
@pytest.mark.parametrize("name", [name for name in METHODS if name != "lbc"])
def test_other_methods_on_two_ranks(kind, name, tmp_path):
    check(kind, name, 2, tmp_path)


@pytest.mark.slow
def test_three_ranks_with_uneven_shards(tmp_path):
    check("fsdp", "lbc", 3, tmp_path)
