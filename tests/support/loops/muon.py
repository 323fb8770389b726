"""Two optimizers: Muon for the matrices inside, AdamW for the rest; both in one checkpoint."""

import torch
from torch import nn

import nmlearn as nm  # nm
from loops import parts


def main() -> None:
    args = parts.arguments()
    torch.manual_seed(0)
    model = parts.tiny_mlp()
    loader, sampler = parts.images()
    inside = [m.weight for m in list(model)[:-1] if isinstance(m, nn.Linear)]
    rest = [p for p in model.parameters() if all(p is not w for w in inside)]
    muon = torch.optim.Muon(inside, lr=2e-2, weight_decay=0.1)
    adamw = torch.optim.AdamW(rest, lr=1e-2)
    optimizers = [muon, adamw]
    start, epochs = 0, args.steps // len(loader)
    if args.resume:
        checkpoint = torch.load(args.resume / "last.pt")
        model.load_state_dict(checkpoint["model"])
        for optimizer, saved in zip(optimizers, checkpoint["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        start = checkpoint["epoch"]
    sparsifier = nm.Sparsifier(model, nm.LBC("2:4")).attach([muon, adamw], epochs * len(loader))  # nm

    for epoch in range(start, epochs):
        sampler.set_epoch(epoch)
        for i, (x, y) in enumerate(loader):
            nn.functional.cross_entropy(model(x), y).backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            parts.may_be_killed(args, epoch * len(loader) + i + 1)
        state = {"model": model.state_dict(), "epoch": epoch + 1}
        torch.save(state | {"optimizers": [each.state_dict() for each in optimizers]}, args.out / "last.pt")
    sparsifier.finalize()  # nm
    torch.save(model.state_dict(), args.out / "final.pt")


if __name__ == "__main__":
    main()
