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
    "maskllm": nm.MaskLLM("2:4", lr=0.02),
    "sste": nm.SSTE("2:4"),
    "maxq": nm.MaxQ("2:4", end=0.5, decay=1e-2),
    "bimask": nm.BiMask("2:4", candidates=5, draws=4, decay=1e-2),
}


def check(kind, methods, world, folder):
    mp.spawn(ranks.rank, (world, kind, methods, folder), nprocs=world)
    first, *others = (torch.load(folder / f"{i}.pt", weights_only=True) for i in range(world))
    for method, weights in first.items():
        for name, weight in ranks.one_process(METHODS[method]).items():
            assert all(torch.equal(weights[name], other[method][name]) for other in others)
            torch.testing.assert_close(weights[name], weight, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_ranks_are_one_process(kind, tmp_path):
    """Also with the sparsifier saved and loaded by another in the middle of the schedule."""
    check(kind, {"lbc": METHODS["lbc"]}, 2, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_other_methods_on_two_ranks(kind, tmp_path):
    fitting = {name: method for name, method in METHODS.items() if kind == "ddp" or not method.whole}
    check(kind, fitting, 2, tmp_path)


@pytest.mark.slow
def test_three_ranks_with_uneven_shards(tmp_path):
    check("fsdp", {name: METHODS[name] for name in ("lbc", "maskllm")}, 3, tmp_path)
