"""nanoGPT's structure: settings in place, ``init_from``, two groups of AdamW, accumulation, one endless loop."""

import math
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import nmlearn as nm  # nm
from loops import parts

args = parts.arguments()
init_from = "resume" if args.resume else "scratch"
max_iters = lr_decay_iters = args.steps
eval_interval, warmup_iters, gradient_accumulation_steps, batch_size = 5, 2, 2, 4
learning_rate, min_lr, weight_decay, grad_clip = 1e-2, 1e-3, 1e-1, 1.0


@dataclass
class GPTConfig:
    block_size: int = 16
    vocab_size: int = 32
    n_layer: int = 2
    n_head: int = 2
    n_embd: int = 32


class Layer(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        width = config.n_embd
        self.n_head = config.n_head
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.c_attn, self.c_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.c_fc, self.c_out = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (self.n_head, -1)).transpose(1, 2) for t in self.c_attn(self.ln_1(x)).chunk(3, -1))
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.c_proj(seen.transpose(1, 2).flatten(2))
        return x + self.c_out(F.gelu(self.c_fc(self.ln_2(x))))


class GPT(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.h = nn.ModuleList(Layer(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.wte.weight = self.lm_head.weight
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.05)

    def forward(self, tokens: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        x = self.wte(tokens) + self.wpe.weight
        for layer in self.h:
            x = layer(x)
        logits = self.lm_head(self.ln_f(x))
        return logits, F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    def configure_optimizers(self) -> torch.optim.AdamW:
        every = list(self.parameters())
        groups = [
            {"params": [p for p in every if p.dim() >= 2], "weight_decay": weight_decay},
            {"params": [p for p in every if p.dim() < 2], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.95))


text = torch.randint(32, (512,), generator=torch.Generator().manual_seed(3)) // 2


def get_batch(split: str, number: int) -> tuple[Tensor, Tensor]:
    """Batches by number, so that a resumed run sees those that an undisturbed one sees."""
    generator = torch.Generator().manual_seed(2 * number + (split == "val"))
    at = torch.randint(len(text) - config.block_size, (batch_size,), generator=generator)
    rows = torch.stack([text[i : i + config.block_size + 1] for i in at])
    return rows[:, :-1], rows[:, 1:]


@torch.no_grad()
def estimate_loss() -> dict[str, float]:
    model.eval()
    losses = {split: float(model(*get_batch(split, 10**6))[1]) for split in ("train", "val")}
    model.train()
    return losses


def get_lr(it: int) -> float:
    if it < warmup_iters:
        return learning_rate * (it + 1) / (warmup_iters + 1)
    if it > lr_decay_iters:
        return min_lr
    ratio = (it - warmup_iters) / (lr_decay_iters - warmup_iters)
    return min_lr + 0.5 * (1 + math.cos(math.pi * ratio)) * (learning_rate - min_lr)


torch.manual_seed(1337)
iter_num, best_val_loss = 0, 1e9
if init_from == "scratch":
    model_args = asdict(GPTConfig())
    config = GPTConfig(**model_args)
    model = GPT(config)
else:
    checkpoint = torch.load(args.resume / "ckpt.pt")
    model_args = checkpoint["model_args"]
    config = GPTConfig(**model_args)
    model = GPT(config)
    model.load_state_dict(checkpoint["model"])
    iter_num, best_val_loss = checkpoint["iter_num"], checkpoint["best_val_loss"]

scaler = torch.amp.GradScaler("cpu", enabled=False)
optimizer = model.configure_optimizers()
if init_from == "resume":
    optimizer.load_state_dict(checkpoint["optimizer"])
checkpoint = None
sparsifier = nm.Sparsifier(model, nm.LBC("2:4")).attach(optimizer, max_iters)  # nm

X, Y = get_batch("train", iter_num * gradient_accumulation_steps)
while True:
    lr = get_lr(iter_num)
    for param_group in optimizer.param_groups:
        param_group["lr"] = lr
    if iter_num % eval_interval == 0:
        losses = estimate_loss()
        best_val_loss = min(best_val_loss, losses["val"])
        if iter_num > 0:
            checkpoint = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "model_args": model_args,
                "iter_num": iter_num,
                "best_val_loss": best_val_loss,
            }
            torch.save(checkpoint, args.out / "ckpt.pt")
    for micro_step in range(gradient_accumulation_steps):
        logits, loss = model(X, Y)
        loss = loss / gradient_accumulation_steps
        X, Y = get_batch("train", iter_num * gradient_accumulation_steps + micro_step + 1)
        scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(model.parameters(), grad_clip)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    iter_num += 1
    parts.may_be_killed(args, iter_num)
    if iter_num > max_iters:
        break
sparsifier.finalize()  # nm
torch.save(model.state_dict(), args.out / "final.pt")
