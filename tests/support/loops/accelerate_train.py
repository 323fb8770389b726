"""A loop with accelerate: prepare, ``save_state`` after each epoch, ``load_state``; nothing is registered."""

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn

import nmlearn as nm  # nm
from loops import parts


def main() -> None:
    args = parts.arguments()
    set_seed(0)
    accelerator = Accelerator(cpu=True)
    model = parts.tiny_mlp()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    loader, _ = parts.images()
    num_epochs = args.steps // len(loader)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=args.steps)
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
    sparsifier = nm.Sparsifier(model, nm.LBC("2:4")).attach(optimizer, num_epochs * len(loader))  # nm

    starting_epoch = 0
    if args.resume:
        last = sorted(args.resume.glob("epoch_*"))[-1]
        accelerator.load_state(str(last))
        starting_epoch = int(last.name.removeprefix("epoch_")) + 1
    for epoch in range(starting_epoch, num_epochs):
        loader.set_epoch(epoch)
        model.train()
        for step, (x, y) in enumerate(loader):
            loss = nn.functional.cross_entropy(model(x), y)
            accelerator.backward(loss)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            parts.may_be_killed(args, epoch * len(loader) + step + 1)
        accelerator.save_state(str(args.out / f"epoch_{epoch}"))
    sparsifier.finalize()  # nm
    torch.save(accelerator.unwrap_model(model).state_dict(), args.out / "final.pt")


if __name__ == "__main__":
    main()
