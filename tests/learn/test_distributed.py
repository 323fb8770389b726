"""DDP and FSDP2 on gloo processes: every rank decides alike, and as one process does on the whole batch."""

import pytest
import torch

import nmlearn as nm
import ranks
from scale_ranks import run_jobs

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


def check(pairs, world, folder):
    """Kinds of sharding and methods, one pair after the other in the same processes."""
    jobs = [(ranks.trained, kind, METHODS[name]) for kind, name in pairs]
    for (_, name), of_ranks in zip(pairs, run_jobs(world, jobs, folder), strict=True):
        first, *others = of_ranks
        for key, weight in ranks.one_process(METHODS[name]).items():
            assert all(torch.equal(first[key], other[key]) for other in others)
            torch.testing.assert_close(first[key], weight, rtol=0, atol=1e-6)


def test_two_ranks_are_one_process(tmp_path):
    """Also with the sparsifier saved and loaded by another in the middle of the schedule."""
    check([("ddp", "lbc"), ("fsdp", "lbc")], 2, tmp_path)


@pytest.mark.slow
def test_other_methods_on_two_ranks(tmp_path):
    """A method that has to see whole weights is refused under FSDP2, which test_scale holds."""
    pairs = [(kind, name) for kind in ("ddp", "fsdp") for name in METHODS if name != "lbc"]
    check([(kind, name) for kind, name in pairs if kind == "ddp" or not METHODS[name].whole], 2, tmp_path)


@pytest.mark.slow
def test_three_ranks_with_uneven_shards(tmp_path):
    check([("fsdp", "lbc"), ("fsdp", "maskllm")], 3, tmp_path)
