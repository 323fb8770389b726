"""One process of training with Lightning's DDP; a program for torch.distributed.run.

python tests/support/lightning_ranks.py FOLDER     writes FOLDER/RANK.pt: weights and masks
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import nmlearn as nm
from lightning_run import Loader, Net, Watch, fit
from nmlearn.integrations.lightning import NMCallback
from nmlearn.lab.train.ranks import leave


class Share(Loader):
    """This rank's share of every batch."""

    def __init__(self) -> None:
        super().__init__()
        rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        self.batches = [(x.chunk(world)[rank], y.chunk(world)[rank]) for x, y in self.batches]


class Uncoupled(Net):
    """Batch norm as in evaluation, which couples no examples."""

    def on_train_epoch_start(self) -> None:
        self.model.eval()

    def train_dataloader(self) -> Any:
        return Share()


def trained(folder: Path, **options: Any) -> dict[str, Any]:
    """The weights and masks at the end, in this process."""
    callback = NMCallback(nm.LBC("2:4"))
    watch = Watch(callback)
    net = fit(folder, callback, watch, net=Uncoupled(), gradient_clip_val=0.5, **options)
    assert callback.finalized
    return {"weights": {name: p.detach() for name, p in net.named_parameters()}, "masks": watch.masks}


if __name__ == "__main__":
    torch.set_num_threads(1)
    where = Path(sys.argv[1])
    done = trained(where, strategy="ddp", devices=2)
    torch.save(done, where / f"{dist.get_rank()}.pt")
    leave()
