"""The structure of Hugging Face's scripts without Trainer: accumulation, checkpoints by step, and skipped batches."""

import math

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn
from torch.utils.data import DataLoader

import nmlearn as nm  # nm
from loops import parts


def main() -> None:
    args = parts.arguments()
    args.checkpointing_steps, args.gradient_accumulation_steps, args.max_train_steps = 5, 2, args.steps
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=args.gradient_accumulation_steps)
    set_seed(0)
    data = parts.images(batches=args.gradient_accumulation_steps * parts.BATCHES)[0].dataset
    train_dataloader = DataLoader(data, batch_size=8)
    model = parts.tiny_mlp()
    no_decay = [p for name, p in model.named_parameters() if "bias" in name]
    decay = [p for name, p in model.named_parameters() if "bias" not in name]
    groups = [{"params": decay, "weight_decay": 0.1}, {"params": no_decay, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-2)
    warm = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, 1 - step / args.max_train_steps))
    model, optimizer, train_dataloader, lr_scheduler = accelerator.prepare(model, optimizer, train_dataloader, warm)
    num_update_steps_per_epoch = math.ceil(len(train_dataloader) / args.gradient_accumulation_steps)
    num_train_epochs = math.ceil(args.max_train_steps / num_update_steps_per_epoch)

    completed_steps, starting_epoch, resume_step = 0, 0, None
    if args.resume:
        newest = max(args.resume.glob("step_*"), key=lambda path: path.stat().st_ctime)
        accelerator.load_state(str(newest))
        resume_step = int(newest.name.removeprefix("step_")) * args.gradient_accumulation_steps
        starting_epoch = resume_step // len(train_dataloader)
        completed_steps = resume_step // args.gradient_accumulation_steps
        resume_step -= starting_epoch * len(train_dataloader)
    sparsifier = nm.Sparsifier(model, nm.LBC("2:4")).attach(optimizer, args.max_train_steps)  # nm

    for epoch in range(starting_epoch, num_train_epochs):
        model.train()
        if resume_step and epoch == starting_epoch:
            active_dataloader = accelerator.skip_first_batches(train_dataloader, resume_step)
        else:
            active_dataloader = train_dataloader
        for x, y in active_dataloader:
            with accelerator.accumulate(model):
                loss = nn.functional.cross_entropy(model(x), y)
                accelerator.backward(loss)
                optimizer.step()
                lr_scheduler.step()
                optimizer.zero_grad()
            if accelerator.sync_gradients:
                completed_steps += 1
                if completed_steps % args.checkpointing_steps == 0:
                    accelerator.save_state(str(args.out / f"step_{completed_steps}"))
                parts.may_be_killed(args, completed_steps)
            if completed_steps >= args.max_train_steps:
                break
    sparsifier.finalize()  # nm
    torch.save(accelerator.unwrap_model(model).state_dict(), args.out / "final.pt")


if __name__ == "__main__":
    main()
