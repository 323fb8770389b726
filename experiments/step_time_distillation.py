r"""Step time with a teacher relative to that without: interleaved in one run, medians.

    python experiments/step_time_distillation.py

A network of MiniLM-L6's shape with random weights, batches of 32 texts of 24 tokens, AdamW, LBC before its schedule
removes anything. The teacher is a copy of the network; the word embeddings are frozen and shared.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

import torch
import transformers
from torch import nn

import nmlearn as nm
from nmlearn.lab.train.environment import environment

FOREVER = 1_000_000_000  # steps: progress does not advance during measurement
SHAPE = {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6, "num_attention_heads": 12}
LAYERS = {"encoder.layer.*": 1.0}
CASES: dict[str, dict[str, Any] | None] = {
    "none": None,
    "hidden": {"hidden": LAYERS},
    "logits": {"logits": 1.0},
    "hidden and logits": {"hidden": LAYERS, "logits": 1.0},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--length", type=int, default=24)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bf16", action="store_true", help="bf16 autocast")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    runs = {name: Run(terms, args) for name, terms in CASES.items()}
    batch = {"input_ids": torch.randint(1000, (args.batch, args.length), device=args.device)}
    batch |= {"attention_mask": torch.ones_like(batch["input_ids"]), "labels": batch["input_ids"][:, 0] % 24}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(args.repeats + 3):
        for name, run in runs.items():
            seconds = run.step(batch)
            if repeat >= 3:
                times[name].append(seconds)
    for name, seconds_of in times.items():
        ratios = [a / b for a, b in zip(seconds_of, times["none"], strict=True)]
        print(json.dumps({"case": name, "ms": 1e3 * statistics.median(seconds_of), "ratio": statistics.median(ratios)}))
    print(json.dumps(environment(torch.device(args.device))))


class Run:
    """One network with its optimizer and sparsifier, with or without a teacher."""

    def __init__(self, terms: dict[str, Any] | None, args: argparse.Namespace) -> None:
        torch.manual_seed(0)
        config = transformers.BertConfig(num_labels=24, **SHAPE)
        self.net: nn.Module = transformers.BertForSequenceClassification(config).to(args.device)
        self.net.bert.embeddings.word_embeddings.requires_grad_(False)
        self.distillation = None if terms is None else nm.Distillation("copy", **terms).attach(self.net)
        learning = [p for p in self.net.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(learning, 1e-4)
        self.sparsifier = nm.Sparsifier(self.net, nm.LBC("2:4")).attach(self.optimizer, FOREVER)
        self.autocast = torch.autocast(args.device, torch.bfloat16, enabled=args.bf16)
        self.gpu = args.device != "cpu"

    def step(self, batch: dict[str, torch.Tensor]) -> float:
        """Seconds per training step."""
        self._wait()
        start = time.perf_counter()
        with self.autocast:
            loss = self.net(**batch).loss
        if self.distillation is not None:
            loss = loss + self.distillation.loss()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self._wait()
        return time.perf_counter() - start

    def _wait(self) -> None:
        if self.gpu:
            torch.cuda.synchronize()


if __name__ == "__main__":
    main()
