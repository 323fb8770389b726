"""Hugging Face's accelerate needs nothing from here, except for sharded weights.

    model, optimizer = accelerator.prepare(model, optimizer)
    sparsifier = nm.Sparsifier(model, nm.LBC("2:4")).attach(optimizer, total_steps)
    accelerator.register_for_checkpointing(sparsifier)             # one process, or DDP
    accelerator.register_for_checkpointing(WholeState(sparsifier))  # FSDP 2

See docs/hf-accelerate.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nmlearn.learn.compact import packed
from nmlearn.learn.sparsifier import Sparsifier
from nmlearn.model.shards import gathered


@dataclass(frozen=True)
class WholeState:
    """A sparsifier's state with whole tensors, for FSDP 2.

    ``accelerator.save_state`` writes only the first process's part of a sharded tensor, and would load that part in
    every process. Whole tensors load under any number of processes, sharded or not.

    Attributes:
        sparsifier: attached.
    """

    sparsifier: Sparsifier

    def state_dict(self) -> dict[str, Any]:
        """The sparsifier's state, gathered, and its masks as bits; all processes must call it."""
        return packed(gathered(self.sparsifier.state_dict()))

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Load the sparsifier's state; every process keeps its part.

        Raises:
            StateError: see :meth:`nmlearn.Sparsifier.load_state_dict`.
        """
        self.sparsifier.load_state_dict(saved)
