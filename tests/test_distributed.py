"""DDP and FSDP2 on gloo processes: every rank decides alike, and as one process does on the whole batch."""

import pytest
import torch
import torch.multiprocessing as mp

import nmlearn as nm
import ranks

pytestmark = pytest.mark.distributed


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
@pytest.mark.parametrize("method", [nm.LBC("2:4"), nm.SRSTE("2:4"), nm.LBC("8:16")], ids=["lbc", "srste", "lbc-weight"])
def test_two_ranks_are_one_process(kind, method, tmp_path):
    mp.spawn(ranks.rank, (2, kind, method, tmp_path), nprocs=2)
    first, second = (torch.load(tmp_path / f"{i}.pt", weights_only=True) for i in range(2))
    expected = ranks.one_process(method)
    assert first.keys() == second.keys() == expected.keys()
    for name, weight in expected.items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], weight, rtol=0, atol=1e-6)
