"""The structure of torchvision's reference script: loaders first, SequentialLR, an AveragedModel, resume."""

import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import nmlearn as nm  # nm
from loops import parts


def main() -> None:
    args = parts.arguments()
    args.start_epoch, args.epochs, args.lr_warmup_epochs = 0, args.steps // parts.BATCHES, 1
    torch.manual_seed(0)
    data_loader, train_sampler = parts.images()
    data_loader_test, _ = parts.images(batches=1)
    model = parts.tiny_resnet()
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    norms = [p for p in model.parameters() if p.dim() < 2]
    others = [p for p in model.parameters() if p.dim() >= 2]
    groups = [{"params": others, "weight_decay": 2e-5}, {"params": norms, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True)
    main_lr_scheduler = CosineAnnealingLR(optimizer, T_max=args.epochs - args.lr_warmup_epochs)
    warmup_lr_scheduler = LinearLR(optimizer, start_factor=0.1, total_iters=args.lr_warmup_epochs)
    lr_scheduler = SequentialLR(optimizer, [warmup_lr_scheduler, main_lr_scheduler], [args.lr_warmup_epochs])
    model_ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    sparsifier = nm.Sparsifier(model, nm.LBC("2:4")).attach(optimizer, args.epochs * len(data_loader))  # nm

    if args.resume:
        checkpoint = torch.load(args.resume / "checkpoint.pth")
        model.load_state_dict(checkpoint["model"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        lr_scheduler.load_state_dict(checkpoint["lr_scheduler"])
        args.start_epoch = checkpoint["epoch"] + 1
        model_ema.load_state_dict(checkpoint["model_ema"])

    for epoch in range(args.start_epoch, args.epochs):
        train_sampler.set_epoch(epoch)
        train_one_epoch(model, criterion, optimizer, data_loader, epoch, args, model_ema)
        lr_scheduler.step()
        parts.accuracy(model_ema, data_loader_test)
        checkpoint = {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "lr_scheduler": lr_scheduler.state_dict(),
            "epoch": epoch,
            "model_ema": model_ema.state_dict(),
        }
        torch.save(checkpoint, args.out / f"model_{epoch}.pth")
        torch.save(checkpoint, args.out / "checkpoint.pth")
    sparsifier.finalize(model_ema)  # nm
    sparsifier.finalize()  # nm
    torch.save(model.state_dict(), args.out / "final.pt")
    torch.save(model_ema.module.state_dict(), args.out / "average.pt")


def train_one_epoch(model, criterion, optimizer, data_loader, epoch, args, model_ema):
    model.train()
    for i, (image, target) in enumerate(data_loader):
        loss = criterion(model(image), target)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if i % 2 == 0:
            model_ema.update_parameters(model)
            if epoch < args.lr_warmup_epochs:
                model_ema.n_averaged.fill_(0)
        parts.may_be_killed(args, epoch * len(data_loader) + i + 1)


if __name__ == "__main__":
    main()
