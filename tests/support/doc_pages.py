"""What the snippets of a page in docs take for granted: small models, data and optimizers under the names they use."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel

import executed_nets
import nets
import nmlearn as nm

Names = dict[str, Any]
NEEDS = {
    "docs/distillation.md": ("transformers",),
    "docs/export.md": ("onnx", "onnxscript"),
    "docs/hf-accelerate.md": ("accelerate",),
    "docs/huggingface.md": ("transformers", "accelerate"),
    "docs/lightning.md": ("lightning",),
    "docs/peft.md": ("peft", "transformers"),
}
# What frameworks say about themselves: the beginnings of the messages.
WARNINGS = {
    "docs/huggingface.md": ("'pin_memory' argument is set as true",),
    "docs/lightning.md": (
        "`isinstance.treespec, LeafSpec.` is deprecated",
        "The 'train_dataloader' does not have many",
        "The number of training batches",
    ),
    "docs/peft.md": ("`is_gradient_checkpointing` is deprecated",),
}
PAGES: dict[str, Callable[[], AbstractContextManager[Names]]] = {}


def names(page: str) -> AbstractContextManager[Names]:
    """The names that a page uses, as a context that puts back what they changed; skips where a package is missing."""
    for package in NEEDS.get(page, ()):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs the optional package {package}")
    return PAGES[page]() if page in PAGES else contextlib.nullcontext({})


def of(page: str) -> Callable[[Callable[[], Iterator[Names]]], None]:
    """Register a generator function, which yields the names of a page."""
    return lambda make: PAGES.update({page: contextlib.contextmanager(make)})


def linears(*sizes: int) -> nn.Sequential:
    return nn.Sequential(*(nn.Linear(*pair) for pair in itertools.pairwise(sizes)))


def cut(model: nn.Module, pattern: str) -> nm.Sparsifier:
    """A sparsifier that has given every layer the pattern, by magnitude."""
    rules = {"": pattern}
    return nm.Sparsifier(model, nm.OneShot(pattern), rules).attach(nets.sgd(model), 1)


def sparse(layer: nn.Module, pattern: str) -> nn.Module:
    cut(layer, pattern).finalize()
    return layer.requires_grad_(False)


@of("docs/acceleration.md")
def _acceleration() -> Iterator[Names]:
    x = torch.randn(4, 64)
    yield {"model": sparse(linears(64, 64, 8), "2:4"), "example": x, "x": x, "linear": sparse(nn.Linear(64, 8), "2:4")}


@of("docs/budgets.md")
def _budgets() -> Iterator[Names]:
    yield {"model": nets.convnet(), "loader": nets.batches(2), "example": torch.randn(1, 3, 8, 8)}


@of("docs/calibration.md")
def _calibration() -> Iterator[Names]:
    yield {"model": nets.convnet(), "loader": nets.batches(2)}


@of("docs/distillation.md")
def _distillation() -> Iterator[Names]:
    import transformers

    small = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    config = transformers.BertConfig(num_attention_heads=2, **small)
    model = transformers.BertForSequenceClassification(config)
    tokens = torch.arange(16).view(2, 8)
    batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": torch.tensor([0, 1])}
    yield {"model": model, "optimizer": torch.optim.AdamW(model.parameters(), 1e-3), "batches": [batch] * 5}


@of("docs/ending.md")
def _ending() -> Iterator[Names]:
    model = nets.convnet(width=8)
    optimizer = nets.sgd(model)
    sparsifier = nm.Sparsifier(model, nm.OneShot("2:4")).attach(optimizer, 12)
    average = AveragedModel(model)

    def train_one_epoch() -> None:
        if not sparsifier.total_steps:  # finalized by the block before
            sparsifier.attach(optimizer, 12)
        nets.train(model, optimizer, nets.batches(6))

    yield {
        "nm": nm,
        "model": model,
        "sparsifier": sparsifier,
        "average": average,
        "epochs": 2,
        "train_one_epoch": train_one_epoch,
        "evaluate": lambda model: 0.5,
    }


@of("docs/export.md")
def _export() -> Iterator[Names]:
    model = nets.convnet(width=8)
    sparsifier = nm.Sparsifier(model, nm.OneShot("2:4")).attach(nets.sgd(model), 1)
    sparsifier.finalize()
    yield {"model": model.eval(), "sparsifier": sparsifier}


@of("docs/pretrained.md")
def _pretrained() -> Iterator[Names]:
    data = torch.utils.data.TensorDataset(torch.randn(48, 16), torch.randint(4, (48,)))
    yield {"model": linears(16, 16, 16, 4), "loader": torch.utils.data.DataLoader(data, 8)}


@of("docs/faults.md")
def _faults() -> Iterator[Names]:
    model = linears(16, 16, 4)
    optimizer = nets.sgd(model)
    yield {
        "loss": model(torch.randn(2, 16)).sum(),
        "optimizer": optimizer,
        "sparsifier": nm.Sparsifier(model, nm.LBC("2:4")).attach(optimizer, 2),
    }


@of("docs/gpu.md")
def _gpu() -> Iterator[Names]:
    yield {"linear": sparse(nn.Linear(64, 64), "1:8")}


@of("docs/hf-accelerate.md")
def _accelerate() -> Iterator[Names]:
    model, x = linears(16, 16, 4), torch.randn(24, 16)
    data = torch.utils.data.TensorDataset(x, torch.randint(4, (24,)))
    loader = torch.utils.data.DataLoader(data, 4)
    with _accelerate_reset():
        yield {"model": model, "optimizer": nets.sgd(model), "loader": loader, "epochs": 2, "loss": F.cross_entropy}


@contextlib.contextmanager
def _accelerate_reset() -> Iterator[None]:
    """accelerate keeps its settings in the process."""
    from accelerate.state import AcceleratorState, GradientState

    try:
        yield
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()


@of("docs/huggingface.md")
def _huggingface() -> Iterator[Names]:
    tokens = torch.arange(8)
    with _accelerate_reset():
        yield {"model": _llama(), "data": [{"input_ids": tokens + i, "labels": tokens + i} for i in range(8)]}


def _llama() -> nn.Module:
    import transformers

    small = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(num_attention_heads=2, **small))


@of("docs/lightning.md")
def _lightning() -> Iterator[Names]:

    import lightning.pytorch as pl  # isort: skip

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = nets.convnet()

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return F.cross_entropy(self.model(batch[0]), batch[1])

        def train_dataloader(self) -> torch.utils.data.DataLoader:
            data = torch.utils.data.TensorDataset(torch.randn(16, 3, 8, 8), torch.randint(5, (16,)))
            return torch.utils.data.DataLoader(data, 8)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return nets.sgd(self)

    yield {"module": Module()}


@of("docs/methods.md")
def _methods() -> Iterator[Names]:
    block = nn.ModuleDict({"mlp": linears(16, 16)})
    example = {"unet": executed_nets.UNet(), "x": executed_nets.image(), "t": torch.zeros(2, 4)}
    yield {"model": nn.ModuleDict({"blocks": nn.ModuleList([block]), "head": nn.Linear(16, 4)}), **example}


@of("docs/optimizers.md")
def _optimizers() -> Iterator[Names]:
    model = linears(16, 16, 16, 4)
    matrices = [layer.weight for layer in model]
    muon, adamw = torch.optim.Muon(matrices[:2]), torch.optim.AdamW([matrices[2], *(layer.bias for layer in model)])
    yield {"nm": nm, "model": model, "muon": muon, "adamw": adamw, "epochs": 2, "loader": nets.batches(16)}


@of("docs/peft.md")
def _peft() -> Iterator[Names]:
    import nmlearn.integrations.peft  # noqa: F401  first, as for Lightning

    model = _llama()
    nm.Sparsifier(model, nm.OneShot("2:4")).attach(nets.sgd(model), 1).finalize()
    yield {"model": model, "batch": {"input_ids": torch.arange(8)[None]}, "total_steps": 10}


@of("docs/scale.md")
def _scale() -> Iterator[Names]:
    """One process is a process group too."""
    import torch.distributed as dist

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    whole = linears(16, 16, 16, 4)
    pipeline = {"whole": copy.deepcopy(whole).to("meta"), "stage": whole[1:], "method": nm.LBC("2:4")}
    pipeline["x"] = torch.zeros(2, 16, device="meta")
    try:
        yield {"model": linears(16, 16, 4), "total_steps": 4, "folder": "checkpoint", **pipeline}
    finally:
        dist.destroy_process_group()
