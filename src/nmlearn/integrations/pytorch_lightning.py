"""N:M sparsity in the Trainer of the package pytorch_lightning: one callback.

    from nmlearn.integrations.pytorch_lightning import NMCallback

    trainer = pl.Trainer(max_epochs=10, callbacks=[NMCallback(nm.LBC("2:4"))])
    trainer.fit(model)

For ``import pytorch_lightning as pl``; ``nmlearn.integrations.lightning`` has the same callback for
``import lightning.pytorch as pl``. See docs/lightning.md.
"""

from __future__ import annotations

from nmlearn.integrations import torchvision
from nmlearn.integrations.lightning_hooks import LearningHooks

torchvision.load()  # which Lightning imports too, through torchmetrics

from pytorch_lightning import Callback  # noqa: E402


class NMCallback(LearningHooks, Callback):
    """Learns N:M sparsity while ``Trainer.fit`` trains, with its state in Lightning's checkpoints.

    See :class:`nmlearn.integrations.lightning_hooks.LearningHooks` for arguments, attributes and errors.
    """
