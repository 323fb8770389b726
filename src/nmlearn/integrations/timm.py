"""timm needs nothing from here any more: an optimizer's ``state_dict`` carries the sparsifier's since attach.

See docs/timm.md.
"""

from __future__ import annotations

import warnings

from torch.optim import Optimizer

from nmlearn.learn.sparsifier import Sparsifier


def carry(sparsifier: Sparsifier, optimizer: Optimizer) -> None:
    """Do nothing, for scripts written when checkpoints did not travel by themselves.

    Args:
        sparsifier, optimizer: attached to each other.
    """
    warnings.warn(
        "carry does nothing any more: attach lets the optimizer's state_dict include the sparsifier's; leave it out",
        DeprecationWarning,
        stacklevel=2,
    )
