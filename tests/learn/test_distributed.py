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
}


def check(kinds, name, world, folder):
    """The kinds run one after the other in the same processes."""
    expected = ranks.one_process(METHODS[name])
    for of_ranks in run_jobs(world, [(ranks.trained, kind, METHODS[name]) for kind in kinds], folder):
        first, *others = of_ranks
        for key, weight in expected.items():
            assert all(torch.equal(first[key], other[key]) for other in others)
            torch.testing.assert_close(first[key], weight, rtol=0, atol=1e-6)


def test_two_ranks_are_one_process(tmp_path):
    """Also with the sparsifier saved and loaded by another in the middle of the schedule."""
    check(["ddp", "fsdp"], "lbc", 2, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in METHODS if name != "lbc"])
def test_other_methods_on_two_ranks(name, tmp_path):
    check(["ddp", "fsdp"], name, 2, tmp_path)


@pytest.mark.slow
def test_three_ranks_with_uneven_shards(tmp_path):
    check(["fsdp"], "lbc", 3, tmp_path)
