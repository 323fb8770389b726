"""LoRA on a 2:4 sparse base: only the adapter trains, the zeros stay, and merging reports its cost.

    python examples/lora.py [steps]

It needs the packages transformers and peft. The model is a small Llama with random weights. With LBC it learns to count
up, then with an adapter to count down; nothing is downloaded.
"""

import sys

import nmlearn as nm
from nmlearn.integrations.peft import merge  # before peft, which fails with a torchvision built for another torch

# isort: split
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 150
WORDS = 32


def batch(direction: int, size: int = 32, length: int = 12) -> torch.Tensor:
    """Sequences that count up (1) or down (-1) from a random number."""
    return (torch.randint(WORDS, (size, 1)) + direction * torch.arange(length)) % WORDS


def train(model: torch.nn.Module, optimizer: torch.optim.Optimizer, direction: int) -> float:
    for _ in range(STEPS):
        tokens = batch(direction)
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return loss.item()


@torch.no_grad()
def loss_of(model: torch.nn.Module, direction: int) -> float:
    tokens = batch(direction, 500)
    return model(input_ids=tokens, labels=tokens).loss.item()


def main() -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=WORDS, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4
    )
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    sparsifier = nm.Sparsifier(model, nm.LBC("2:4"))
    sparsifier.attach(optimizer, total_steps=STEPS)
    print(f"base, counting up: loss {train(model, optimizer, 1):.3f}")
    sparsifier.finalize()
    base = {name: weight.detach().clone() for name, weight in model.named_parameters()}

    adapted = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"))
    print(f"base, counting down: loss {loss_of(adapted, -1):.3f}")
    adapter = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=3e-3)
    train(adapted, adapter, -1)
    print(f"with the adapter: loss {loss_of(adapted, -1):.3f}")
    now = {name.replace(".base_layer", ""): weight for name, weight in adapted.get_base_model().named_parameters()}
    untouched = all(torch.equal(now[name], base[name]) for name in base)

    merged = merge(adapted, inputs={"input_ids": batch(-1)})
    print(merged)
    print(f"merged: loss {loss_of(merged.model, -1):.3f}")

    for parameter in merged.model.parameters():
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(merged.model.parameters(), lr=1e-3)
    sparsifier = nm.Sparsifier(merged.model, nm.Keep("2:4"))
    sparsifier.attach(optimizer, total_steps=STEPS)
    train(merged.model, optimizer, -1)
    sparsifier.finalize()
    print(f"merged and trained further with its zeros: loss {loss_of(merged.model, -1):.3f}")
    print(f"base untouched by the adapter: {untouched}; {len(merged.weights)} merged weights are 2:4")


if __name__ == "__main__":
    main()
