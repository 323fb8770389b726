"""LBC in a loop with Hugging Face's accelerate: checkpoints, accumulation and bf16 with its usual calls.

    python examples/accelerate_loop.py [epochs]    # or: accelerate launch examples/accelerate_loop.py

It needs the package accelerate. Halfway it saves everything, damages the model, and resumes from the file.
"""

import math
import sys
import tempfile

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import nmlearn as nm

EPOCHS = 2 * (int(sys.argv[1]) if len(sys.argv) > 1 else 5)
ACCUMULATION = 2


def data(count: int) -> TensorDataset:
    """Points, and in which of four random directions they extend furthest."""
    directions = torch.randn(64, 4, generator=torch.Generator().manual_seed(1))
    points = torch.randn(count, 64)
    return TensorDataset(points, (points @ directions).argmax(1))


def main(folder: str) -> None:
    torch.manual_seed(0)
    accelerator = Accelerator(mixed_precision="bf16", gradient_accumulation_steps=ACCUMULATION)
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 4))
    loader, optimizer = DataLoader(data(8192), 64, shuffle=True), torch.optim.AdamW(model.parameters(), 1e-3)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)

    steps = EPOCHS * math.ceil(len(loader) / ACCUMULATION)  # optimizer steps, in this process
    sparsifier = nm.Sparsifier(model, nm.LBC("2:4")).attach(optimizer, steps)
    accelerator.register_for_checkpointing(sparsifier)  # with FSDP 2: WholeState(sparsifier)
    accelerator.print(sparsifier.plan)

    for epoch in range(EPOCHS):
        for x, y in loader:
            with accelerator.accumulate(model):
                loss = F.cross_entropy(model(x), y)
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
        accelerator.print(f"epoch {epoch + 1}: loss {loss.item():.3f}, progress {sparsifier.progress:.0%}")
        if epoch + 1 == EPOCHS // 2:
            accelerator.save_state(folder)
            nn.init.normal_(accelerator.unwrap_model(model)[2].weight)  # stands for any loss of state
            accelerator.load_state(folder)  # training resumes from the file, bit for bit
    sparsifier.finalize()
    middle = accelerator.unwrap_model(model)[2].weight
    accelerator.print(f"finished after {steps} steps, {float((middle != 0).float().mean()):.0%} of the middle kept")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(temporary)
