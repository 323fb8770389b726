"""timm's components, combined as in its training script; sparsity adds the lines marked nmlearn.

    python examples/timm_train.py [epochs] [--model test_vit] [--opt lookahead_adamw] [--resume FOLDER/last.pth.tar]

It needs the package timm. Without --data-dir it trains on images of the Fashion-MNIST subset inside nmlearn.
"""

import argparse
import tempfile

import torch
from PIL import Image

import nmlearn as nm
from nmlearn.integrations import torchvision
from nmlearn.lab import data

torchvision.load()  # only needed for a torchvision that was built for another accelerator than torch

from timm import create_model  # noqa: E402
from timm.data import Mixup, create_dataset, create_loader  # noqa: E402
from timm.loss import SoftTargetCrossEntropy  # noqa: E402
from timm.models import load_checkpoint, resume_checkpoint  # noqa: E402
from timm.optim import create_optimizer_v2  # noqa: E402
from timm.scheduler import create_scheduler_v2  # noqa: E402
from timm.utils import AverageMeter, CheckpointSaver, ModelEmaV3, NativeScaler, accuracy  # noqa: E402


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("epochs", nargs="?", type=int, default=10)
    parser.add_argument(
        "--data-dir", help="a folder with train/CLASS/ and validation/CLASS/; default: 1,000 images of Fashion-MNIST"
    )
    parser.add_argument("--num-classes", type=int, default=10)
    parser.add_argument("--model", default="test_resnet")
    parser.add_argument("--img-size", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--opt", default="adamw")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--clip-grad", type=float, default=1.0)
    parser.add_argument("--pattern", default="2:4")
    parser.add_argument("--resume", default="")
    parser.add_argument("--output", help="folder for checkpoints; default: a temporary one")
    return parser.parse_args()


class Images(torch.utils.data.Dataset):
    """Fashion-MNIST like timm's datasets: PIL images, to which the loader applies its transforms."""

    transform = None

    def __init__(self, part: str) -> None:
        task = data.load("fashion-mnist", augment="none", train_limit=1000, eval_limit=250)
        batches = task.train_batches(1000, epoch=0, seed=0) if part == "train" else task.eval_batches(250)
        self.images, self.labels = next(iter(batches))
        self.images = ((self.images - self.images.min()) / (self.images.max() - self.images.min()) * 255).byte()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.images[index, 0].numpy()).convert("RGB")), int(self.labels[index])


def loader(args: argparse.Namespace, part: str) -> torch.utils.data.DataLoader:
    folder = args.data_dir
    dataset = create_dataset("", folder, split=part, is_training=part == "train") if folder else Images(part)
    training = {"is_training": True, "color_jitter": 0.0, "scale": (0.6, 1.0)} if part == "train" else {}
    plain = {"use_prefetcher": False, "num_workers": 0, "persistent_workers": False, "device": torch.device("cpu")}
    return create_loader(dataset, (3, args.img_size, args.img_size), args.batch_size, **training, **plain)


def main() -> None:
    args = parse()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        train(args, loader(args, "train"), loader(args, "validation"), args.output or folder)


def train(args: argparse.Namespace, train_loader, eval_loader, output: str) -> None:  # type: ignore[no-untyped-def]
    model = create_model(args.model, num_classes=args.num_classes)
    optimizer = create_optimizer_v2(model, args.opt, lr=args.lr, weight_decay=0.05)
    steps = len(train_loader)
    scheduler, epochs = create_scheduler_v2(optimizer, num_epochs=args.epochs, updates_per_epoch=steps)
    scaler, ema = NativeScaler(device="cpu"), ModelEmaV3(model, decay=0.99, use_warmup=True)
    mixup, loss_of = Mixup(mixup_alpha=0.1, num_classes=args.num_classes), SoftTargetCrossEntropy()

    sparsifier = nm.Sparsifier(model, nm.LBC(args.pattern)).attach(optimizer, epochs * steps)  # nmlearn

    saver = CheckpointSaver(model, optimizer, model_ema=ema, amp_scaler=scaler, checkpoint_dir=output, max_history=1)
    start = 0
    if args.resume:
        start = resume_checkpoint(model, args.resume, optimizer, scaler)
        load_checkpoint(ema.module, args.resume, use_ema=True)
        scheduler.step(start)
    for epoch in range(start, epochs):
        model.train()
        losses = AverageMeter()
        for i, (images, labels) in enumerate(train_loader):
            images, targets = mixup(images, labels)
            with torch.autocast("cpu", torch.bfloat16):
                loss = loss_of(model(images).float(), targets)
            optimizer.zero_grad()
            scaler(loss, optimizer, clip_grad=args.clip_grad, parameters=model.parameters())
            ema.update(model, step=epoch * steps + i)
            losses.update(loss.item(), len(images))
        scheduler.step(epoch + 1)
        top1 = validate(ema.module, eval_loader)
        saver.save_checkpoint(epoch, metric=top1)
        print(f"epoch {epoch + 1}: loss {losses.avg:.3f}, EMA top-1 {top1:.1f} %, {sparsifier.progress:.0%} done")

    sparsifier.finalize(ema.module)  # nmlearn: the EMA gets the final masks
    sparsifier.finalize()  # nmlearn: verifies every group
    kept = [
        float((dict(ema.module.named_parameters())[row.name] != 0).float().mean()) for row in sparsifier.plan.sparse
    ]
    top1 = [validate(each, eval_loader) for each in (model, ema.module)]
    print(f"top-1 {top1[0]:.1f} %, EMA {top1[1]:.1f} %")
    print(f"finished, at most {max(kept):.1%} of each of {len(kept)} sparse layers kept")


@torch.no_grad()
def validate(model: torch.nn.Module, batches) -> float:  # type: ignore[no-untyped-def]
    meter = AverageMeter()
    for images, labels in batches:
        meter.update(accuracy(model.eval()(images), labels)[0].item(), len(labels))
    return meter.avg


if __name__ == "__main__":
    main()
