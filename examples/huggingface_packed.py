"""Train a Hugging Face model with 2:4 sparsity, save it as a packed folder and load it with from_pretrained.

    python examples/huggingface_packed.py [steps]

It needs the package transformers. The model is a small BERT with random weights and learns to tell which half of a
sentence has the smaller sum, so nothing is downloaded.
"""

import sys
import tempfile
from pathlib import Path

import torch
import transformers

import nmlearn as nm
from nmlearn.integrations.transformers import save_packed  # importing it also lets from_pretrained read the folder

STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 200


def batch(size: int = 64, length: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids, and whether the second half has the smaller sum."""
    tokens = torch.randint(64, (size, length))
    first, second = tokens.chunk(2, dim=1)
    return tokens, (second.sum(1) < first.sum(1)).long()


def main() -> None:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=64, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=256
    )
    model = transformers.BertForSequenceClassification(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    sparsifier = nm.Sparsifier(model, nm.LBC("2:4", end=0.5))
    sparsifier.attach(optimizer, total_steps=STEPS)
    for _ in range(STEPS):
        tokens, labels = batch()
        loss = model(input_ids=tokens, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    sparsifier.finalize()

    with tempfile.TemporaryDirectory() as folder:
        dense, packed = Path(folder) / "dense", Path(folder) / "packed"
        model.save_pretrained(dense)  # an ordinary folder, zeros in place
        save_packed(model, packed)
        sizes = [(path / "model.safetensors").stat().st_size for path in (dense, packed)]
        loaded = transformers.AutoModelForSequenceClassification.from_pretrained(packed)

    tokens, labels = batch(1000)
    with torch.no_grad():
        before, after = (each.eval()(input_ids=tokens).logits for each in (model, loaded))
    print(f"loss {loss.item():.3f}, accuracy {float((after.argmax(1) == labels).float().mean()):.1%}")
    print(f"dense {sizes[0]:,} bytes, packed {sizes[1]:,} bytes; same logits: {torch.equal(before, after)}")


if __name__ == "__main__":
    main()
