"""What the ranks of the Trainer's distributed tests run; a module of its own, which their processes can import."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard

import nmlearn as nm
from nets import same
from nmlearn.integrations import transformers_trainer
from nmlearn.integrations.transformers_trainer import NMCallback
from nmlearn.lab.train.ranks import leave
from processes import as_torchrun
from trainer_run import Sentences, bert, trainer


def ddp(number: int, port: int, folder: Path) -> None:
    """Train with the Trainer in one go, then again from the middle; what came out goes to a file."""
    as_torchrun(number, 2, port)
    options: dict[str, Any] = {"ddp_backend": "gloo", "save_strategy": "steps", "save_steps": 4}
    written, run_folder = watch(), folder / "run"
    runs = [trainer(run_folder, bert(), NMCallback(nm.LBC("2:4")), **options) for _ in range(2)]
    runs[0].train()
    runs[1].train(resume_from_checkpoint=str(run_folder / "checkpoint-4"))
    assert type(runs[0].model_wrapped).__name__ == "DistributedDataParallel"
    assert same(*[run.model.state_dict() for run in runs]), "resumed as uninterrupted"
    logs = [[line["nm_density"] for line in run.state.log_history if "loss" in line] for run in runs]
    weights = dict(runs[0].model.named_parameters())
    torch.save({"weights": weights, "logs": logs, "written": written}, folder / f"{number}.pt")
    leave()


def fsdp(number: int, port: int, folder: Path) -> None:
    """The same with shards. The Trainer shards on GPUs only, so its events come by hand here."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://localhost:{port}", rank=number, world_size=2)
    written, checkpoint = watch(), {}
    model, optimizer = shards()
    logs = [[]]
    for step, callback, state in training(model, optimizer, NMCallback(nm.LBC("2:4")), number, folder, start=0):
        if step == 4:
            checkpoint = copy.deepcopy({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
            callback.on_save(arguments(number, folder), state, None)
        logs[0] += note(callback, state, number, folder)
    again, optimizer = shards()
    again.load_state_dict(checkpoint["model"])
    optimizer.load_state_dict(checkpoint["optimizer"])
    logs.append([])
    for _, callback, state in training(again, optimizer, NMCallback(nm.LBC("2:4")), number, folder, start=4):
        logs[1] += note(callback, state, number, folder)
    weights, others = ({name: p.detach().full_tensor() for name, p in m.named_parameters()} for m in (model, again))
    assert same(weights, others), "resumed as uninterrupted"
    torch.save({"weights": weights, "logs": logs, "written": written}, folder / f"{number}.pt")
    leave()


def training(model: Any, optimizer: Any, callback: NMCallback, number: int, folder: Path, start: int) -> Any:
    """Eight steps, the first of them done already, with the events of a Trainer."""
    args, data = arguments(number, folder), Sentences()
    state = SimpleNamespace(global_step=start, max_steps=8, is_hyper_param_search=False, log_history=[{}])
    callback.on_train_begin(args, state, None, model=model, optimizer=optimizer)
    assert all(hasattr(row.parameter, "placements") for row in callback.plan.sparse)
    for step in range(start, 8):
        optimizer.zero_grad()
        mine = slice(4 * step + 2 * number, 4 * step + 2 * number + 2)
        model(input_ids=data.tokens[mine], labels=data.labels[mine]).loss.backward()
        optimizer.step()
        state.global_step += 1
        yield state.global_step, callback, state
    callback.on_train_end(args, state, None)


def note(callback: NMCallback, state: Any, number: int, folder: Path) -> list[float]:
    """The density that is logged after every fourth step."""
    callback.on_log(arguments(number, folder), state, None, logs=(logs := {"loss": 0.0}))
    return [logs["nm_density"]] if state.global_step % 4 == 0 else []


def arguments(number: int, folder: Path) -> Any:
    return SimpleNamespace(optim="sgd", should_save=number == 0, save_only_model=False, output_dir=folder)


def shards() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    model = bert().eval()
    for layer in model.bert.encoder.layer:
        fully_shard(layer)
    fully_shard(model)
    return model, torch.optim.AdamW(model.parameters(), lr=1e-2)


def watch() -> list[str]:
    """The list that the folders of our files are put into as they are written."""
    written: list[str] = []
    write = transformers_trainer.write_atomic

    def noted(path: Path, how: Callable[[Any], object]) -> None:
        written.append(path.parent.name)
        write(path, how)

    transformers_trainer.write_atomic = noted
    return written
