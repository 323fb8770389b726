"""The structure of timm's train.py: resume, the average, the loaders, then a scheduler that each step updates."""

import math

import torch
from torch import nn

import nmlearn as nm  # nm
from loops import parts


class CosineScheduler:
    """Learning rates by the number of updates, a warm-up first; it keeps no state."""

    def __init__(self, optimizer: torch.optim.Optimizer, updates: int, warmup: int) -> None:
        self.optimizer, self.updates, self.warmup = optimizer, updates, warmup
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        self.step_update(0)

    def step_update(self, num_updates: int) -> None:
        share = (num_updates + 1) / self.warmup
        if num_updates >= self.warmup:
            share = 0.5 * (1 + math.cos(math.pi * num_updates / self.updates))
        for group in self.optimizer.param_groups:
            group["lr"] = share * group["initial_lr"]


class CheckpointSaver:
    """Writes the last checkpoint, and the best by the metric."""

    def __init__(self, model, optimizer, model_ema, folder):
        self.model, self.optimizer, self.model_ema, self.folder = model, optimizer, model_ema, folder
        self.best = -1.0

    def save_checkpoint(self, epoch, metric):
        state = {"epoch": epoch, "arch": "tiny_resnet", "version": 2, "metric": metric}
        state |= {"state_dict": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        state["state_dict_ema"] = self.model_ema.module.state_dict()
        torch.save(state, self.folder / "last.pth.tar")
        if metric > self.best:
            self.best = metric
            torch.save(state, self.folder / "model_best.pth.tar")


def resume_checkpoint(model, path, optimizer):
    checkpoint = torch.load(path)
    model.load_state_dict(checkpoint["state_dict"])
    optimizer.load_state_dict(checkpoint["optimizer"])
    return checkpoint["epoch"] + 1


def main() -> None:
    args = parts.arguments()
    torch.manual_seed(0)
    model = parts.tiny_resnet()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.05)

    resume_epoch = None
    if args.resume:
        resume_epoch = resume_checkpoint(model, args.resume / "last.pth.tar", optimizer)
    model_ema = parts.Ema(model, decay=0.9)
    if args.resume:
        model_ema.module.load_state_dict(torch.load(args.resume / "last.pth.tar")["state_dict_ema"])

    grad_accum_steps = 2
    loader_train, sampler = parts.images(batches=grad_accum_steps * parts.BATCHES)
    loader_eval, _ = parts.images(batches=1)
    train_loss_fn = nn.CrossEntropyLoss(label_smoothing=0.1)
    saver = CheckpointSaver(model, optimizer, model_ema, args.out)
    updates_per_epoch = (len(loader_train) + grad_accum_steps - 1) // grad_accum_steps
    num_epochs = args.steps // updates_per_epoch
    lr_scheduler = CosineScheduler(optimizer, num_epochs * updates_per_epoch, warmup=3)
    start_epoch = resume_epoch or 0
    if start_epoch > 0:
        lr_scheduler.step_update(start_epoch * updates_per_epoch)
    sparsifier = nm.Sparsifier(model, nm.LBC("2:4")).attach(optimizer, num_epochs * updates_per_epoch)  # nm

    for epoch in range(start_epoch, num_epochs):
        sampler.set_epoch(epoch)
        num_updates = epoch * updates_per_epoch
        model.train()
        for i, (x, target) in enumerate(loader_train):
            loss = train_loss_fn(model(x), target) / grad_accum_steps
            loss.backward()
            if (i + 1) % grad_accum_steps:
                continue
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            num_updates += 1
            optimizer.zero_grad()
            model_ema.update(model)
            lr_scheduler.step_update(num_updates)
            parts.may_be_killed(args, num_updates)
        saver.save_checkpoint(epoch, parts.accuracy(model_ema.module, loader_eval))
    sparsifier.finalize(model_ema)  # nm
    sparsifier.finalize()  # nm
    torch.save(model.state_dict(), args.out / "final.pt")
    torch.save(model_ema.module.state_dict(), args.out / "average.pt")


if __name__ == "__main__":
    main()
