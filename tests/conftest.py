"""What every test shares: a fixed seed, the thread count put back, and hypothesis without a clock."""

import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

pytest_plugins = ["isas", "pretended_cutlass", "triton_interpreter"]

settings.register_profile("nmlearn", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("nmlearn")


@pytest.fixture(autouse=True)
def _seed_and_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)
