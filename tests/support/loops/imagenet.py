"""The structure of PyTorch's ImageNet example: SGD, StepLR, a checkpoint at each epoch's end and a copy of the best."""

import shutil

import torch
from torch import nn
from torch.optim.lr_scheduler import StepLR

import nmlearn as nm  # nm
from loops import parts

ARCHITECTURES = {"tiny_resnet": parts.tiny_resnet, "tiny_mlp": parts.tiny_mlp}
best_acc1 = 0.0


def main() -> None:
    global best_acc1
    args = parts.arguments()
    args.arch, args.start_epoch, args.epochs = "tiny_resnet", 0, args.steps // parts.BATCHES
    torch.manual_seed(0)
    model = ARCHITECTURES[args.arch]()
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=1e-4)
    scheduler = StepLR(optimizer, step_size=2, gamma=0.5)

    if args.resume:
        checkpoint = torch.load(args.resume / "checkpoint.pth.tar")
        args.start_epoch = checkpoint["epoch"]
        best_acc1 = checkpoint["best_acc1"]
        model.load_state_dict(checkpoint["state_dict"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        scheduler.load_state_dict(checkpoint["scheduler"])

    train_loader, train_sampler = parts.images()
    val_loader, _ = parts.images(batches=1)
    sparsifier = nm.Sparsifier(model, nm.LBC("2:4")).attach(optimizer, args.epochs * len(train_loader))  # nm

    for epoch in range(args.start_epoch, args.epochs):
        train_sampler.set_epoch(epoch)
        train(train_loader, model, criterion, optimizer, epoch, args)
        acc1 = parts.accuracy(model, val_loader)
        scheduler.step()
        is_best = acc1 > best_acc1
        best_acc1 = max(acc1, best_acc1)
        state = {
            "epoch": epoch + 1,
            "arch": args.arch,
            "state_dict": model.state_dict(),
            "best_acc1": best_acc1,
            "optimizer": optimizer.state_dict(),
            "scheduler": scheduler.state_dict(),
        }
        save_checkpoint(state, is_best, args.out)
    sparsifier.finalize()  # nm
    torch.save(model.state_dict(), args.out / "final.pt")


def train(train_loader, model, criterion, optimizer, epoch, args):
    model.train()
    for i, (x, target) in enumerate(train_loader):
        loss = criterion(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        parts.may_be_killed(args, epoch * len(train_loader) + i + 1)


def save_checkpoint(state, is_best, folder):
    torch.save(state, folder / "checkpoint.pth.tar")
    if is_best:
        shutil.copyfile(folder / "checkpoint.pth.tar", folder / "model_best.pth.tar")


if __name__ == "__main__":
    main()
