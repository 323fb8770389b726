"""The fixture `cutlass`: torch's semi-structured tensors on a machine without a GPU."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch.sparse import SparseSemiStructuredTensorCUTLASS

from nmlearn.packed.kernels import semi_structured


@pytest.fixture
def cutlass(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUTLASS's packing is plain torch and runs anywhere; its product, which does not, is done by the dense weight."""

    def from_dense(weight, **_):
        packed, meta = torch.sparse._semi_structured_conversions.sparse_semi_structured_from_dense_cutlass(weight)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            return SparseSemiStructuredTensorCUTLASS(weight.shape, packed, meta, None, None, None)

    monkeypatch.setattr(semi_structured, "_unavailable", lambda device, backend: "")
    monkeypatch.setattr(SparseSemiStructuredTensorCUTLASS, "from_dense", from_dense)
    monkeypatch.setattr(semi_structured, "linear", lambda x, packed, bias: F.linear(x, packed.to_dense(), bias))
