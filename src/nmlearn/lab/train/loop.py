"""The training loop.

A run can be killed at any moment: with ``resume="auto"`` it resumes from its last checkpoint and, on a CPU, ends with
bit-identical results. That takes the model, the optimizer, the sparsifier, the average, the random generators, the
counts, and data that can start in the middle of an epoch. Metrics written after the checkpoint are truncated and
written again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from nmlearn.errors import StateError
from nmlearn.lab.data import Batch
from nmlearn.lab.train import evaluation, optim, recipe
from nmlearn.lab.train.accounting import Accounting
from nmlearn.lab.train.checkpoints import Checkpoints, refuse_other
from nmlearn.lab.train.config import TrainConfig
from nmlearn.lab.train.environment import environment
from nmlearn.lab.train.evaluation import evaluate
from nmlearn.lab.train.finite import MOST_IN_A_ROW, Finite, broken
from nmlearn.lab.train.folder import RunFolder, save_model
from nmlearn.lab.train.journal import Journal, Listener, MaskWatch, Stopwatch
from nmlearn.lab.train.ranks import Ranks, joined
from nmlearn.lab.train.setting import Setting, setting
from nmlearn.model.products import multiply_adds

# Values of the last evaluation in the final event and the summary; the last two are only for detectors.
SCORES = ("loss", "accuracy", "bits_per_byte", "ema_accuracy", "box_ap", "mask_ap")


def train(config: TrainConfig, listener: Listener | None = None) -> dict[str, Any]:
    """Train according to the configuration and write the run folder.

    An interrupted run is resumed; a finished one is not run again (see ``config.resume``).

    Args:
        config: all settings; the run is written to ``config.folder``.
        listener: called with every event, see :data:`~nmlearn.lab.train.journal.Listener`.

    Returns:
        The summary, as in summary.json.

    Raises:
        ConfigError: the folder holds a run with other settings, or a setting is wrong.
        DataError, PlanError, AttachError: the data, the plan or the optimizer is refused.
        StateError: a checkpoint cannot be resumed, several losses in a row or weights are not finite, or another
            process is training in the folder.
        WriteError: a file cannot be written, e.g. because the disk is full. The last checkpoint is kept.
        ViolationError: a weight violates its pattern at the end.
    """
    run = RunFolder(config.folder)
    before, now = run.config(), recipe.to_dict(config)
    if config.resume == "auto" and before is not None and run.holds_work():
        refuse_other(str(run.path), before, now)
        summary = run.summary()
        if summary is not None:
            return summary
    with joined(config.device) as ranks:
        parts = setting(config, ranks)  # first: settings that are refused leave no folder
        with run.locked() if ranks.first else contextlib.nullcontext():
            return _Training(config, run, ranks, listener, parts).run()


class _Training:
    """One run, from its start or a checkpoint to its end."""

    def __init__(
        self, config: TrainConfig, run: RunFolder, ranks: Ranks, listener: Listener | None, parts: Setting
    ) -> None:
        self.config, self.folder, self.ranks, self.setting = config, run, ranks, parts
        self.accounting = Accounting(self.setting.sparsifier, self._products())
        self.masks = MaskWatch(self.setting.sparsifier)
        self.watch = Stopwatch()
        self.losses: list[Tensor] = []
        self.finite = Finite(self.setting.model, ranks)
        counts = (self.accounting, self.masks, self.watch, self.finite)
        self.checkpoints = Checkpoints(config, run, ranks, self.setting, *counts)
        step = self.checkpoints.resume()
        self.step = step or 0
        self._logged_seconds = self.watch.seconds
        self.journal = Journal(run if ranks.first else None, listener, config.tensorboard, self.step)
        self._begin(resumed=step is not None)

    def run(self) -> dict[str, Any]:
        """Train to the end; returns the summary."""
        try:
            while self.step < self.setting.total_steps:
                self._epoch()
            return self._finish()
        finally:
            self.journal.close()

    def _epoch(self) -> None:
        """The rest of the epoch that contains ``step``."""
        parts = self._parts()
        self.setting.forward.train()
        self.watch.start()
        for _ in range(self.setting.steps_per_epoch - self.step % self.setting.steps_per_epoch):
            self._learn(parts)
            self.step += 1
            if self.setting.average is not None and not self.finite.in_a_row:
                self.setting.average.follow(self.setting.model, self.step)
            self.journal.tell(
                {"event": "step", "step": self.step, "epoch": self.epoch, "total_steps": self.setting.total_steps}
            )
            self._report()

    def _learn(self, parts: Iterator[Batch]) -> None:
        """One optimizer step, over ``accumulate`` parts of a batch; skipped when its loss is not finite."""
        config, optimizer = self.config, self.setting.optimizer
        for group in optimizer.param_groups:
            group["lr"] = self.lr
        optimizer.zero_grad(set_to_none=True)
        self.finite.begin()
        loss = torch.zeros((), device=self.ranks.device)
        for part in range(config.accumulate):
            # DDP sums the gradients of all processes once per step, with the last part.
            last = part == config.accumulate - 1
            with contextlib.nullcontext() if last else self._unshared():
                own = self._forward(*next(parts))
                loss += own.detach()
                if last:
                    self.finite.see(loss)
                own.backward()
        self.accounting.count()
        if self.finite.leaves_out():
            self._leave_out()
            return
        if config.optim.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.setting.model.parameters(), config.optim.clip_norm)
        optimizer.step()
        self.losses.append(loss)

    def _forward(self, inputs: Any, targets: Any) -> Tensor:
        """One part's contribution to the batch's loss."""
        inputs = evaluation.to_device(inputs, self.ranks.device, self.config)
        with evaluation.autocast(self.ranks.device, self.config):
            forward, smoothing = self.setting.forward, self.config.optim.label_smoothing
            loss = evaluation.training_loss(forward, inputs, targets, smoothing)
            if self.setting.distillation is not None:
                loss = loss + self.setting.distillation.loss()
            return loss / self.config.accumulate

    def _leave_out(self) -> None:
        """Replaces a step whose loss is not finite: nothing is learned, and the schedule advances."""
        if self.finite.in_a_row >= MOST_IN_A_ROW:
            raise self._not_finite(self.step + 2 - self.finite.in_a_row, self.finite.loss)
        self.setting.sparsifier.skip_step()
        self.journal.write("left_out", self.step + 1, lr=self.lr, in_a_row=self.finite.in_a_row)

    def _unshared(self) -> AbstractContextManager[object]:
        """A context in which DDP does not synchronise gradients."""
        forward = self.setting.forward
        return forward.no_sync() if self.ranks.size > 1 else contextlib.nullcontext()  # type: ignore[operator]

    def _report(self) -> None:
        """Write what is due after a step. A checkpoint comes last, when all metrics up to it are in the file."""
        epoch_ends = self.step % self.setting.steps_per_epoch == 0
        ends = self.step == self.setting.total_steps
        every = self.config.checkpoint_every
        saves = ends or (self.step % every == 0 if every else epoch_ends)
        evaluates = epoch_ends and not ends and round(self.epoch) % self.config.eval_every == 0
        if not (saves or epoch_ends or self.step % self.config.log_every == 0):
            return
        self._log()
        if evaluates:
            self.journal.write("eval", self.step, **self._evaluate())
        if saves:
            self._save()
        self.watch.start()

    def _log(self) -> None:
        """Read the losses since the last record, which waits for the device, and write them and the masks."""
        values = (self.ranks.sum(torch.stack(self.losses)) / self.ranks.size).tolist() if self.losses else []
        self.watch.stop()
        seconds = self.watch.seconds - self._logged_seconds
        self.journal.write(
            "train",
            self.step,
            epoch=self.epoch,
            loss=sum(values) / len(values) if values else None,
            lr=self.setting.optimizer.param_groups[0]["lr"],
            examples_per_second=len(values) * self.config.batch_size / max(seconds, 1e-9),
            seconds=self.watch.seconds,
            **self._taught(),
        )
        self.losses, self._logged_seconds = [], self.watch.seconds
        self.journal.write("sparsity", self.step, **self.masks.look())

    def _taught(self) -> dict[str, float]:
        """The part of the last loss that a teacher has, on the first process."""
        distillation = self.setting.distillation
        if distillation is None or distillation.last is None:
            return {}
        return {"distillation": float(distillation.last)}

    def _save(self) -> None:
        """Write a checkpoint, only if all weights are finite: it must be worth going back to."""
        if broken(self.setting.model):
            raise self._not_finite(self.step, self.finite.loss)
        self.checkpoints.save(self.step)

    def _evaluate(self) -> dict[str, Any]:
        """The values of an eval event."""
        values = evaluate(self.setting.model, self.setting.task, self.config, self.ranks)
        average = self.setting.average
        scored = average is not None and self.setting.task.kind in ("image", "text")
        averaged = evaluate(average.model, self.setting.task, self.config, self.ranks) if average and scored else None
        return {"epoch": self.epoch, **values, "ema_accuracy": averaged["accuracy"] if averaged else None}

    def _finish(self) -> dict[str, Any]:
        """Finalize, evaluate the model to be saved, and write it and the summary."""
        setting, accounting = self.setting, self.accounting
        sparse = {row.name: row.weights for row in setting.sparsifier.plan.sparse}
        setting.sparsifier.finalize()
        if setting.average is not None:
            setting.sparsifier.finalize(setting.average.model)
        evaluated = self.journal.write("eval", self.step, **self._evaluate())
        final = self.journal.write(
            "final",
            self.step,
            **{key: evaluated[key] for key in SCORES if key in evaluated},
            seconds=self.watch.seconds,
            state_bytes_per_weight=accounting.state_bytes / max(1, sum(sparse.values())),
            training_flops_ratio=accounting.training_flops_ratio,
            density=_density(setting.model, list(sparse)),
            violations=0,
            left_out=self.finite.left_out,
        )
        summary = {**final, **_labels(self.config)}
        if self.ranks.first:
            patterns = {row.name: str(row.pattern) for row in setting.sparsifier.plan.sparse}
            patterns = patterns if setting.sparsifier.method.holds != "nothing" else {}
            save_model(self.folder.model, setting.model, patterns)
            if setting.average is not None:
                save_model(self.folder.average, setting.average.model, patterns)
            self.folder.finish(summary)
        return summary

    @property
    def epoch(self) -> float:
        """Epochs done, with a fraction."""
        return self.step / self.setting.steps_per_epoch

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        return optim.learning_rate(self.config.optim, self.step, self.setting.steps_per_epoch, self.setting.total_steps)

    def _parts(self) -> Iterator[Batch]:
        """The parts of batches that this process computes for the rest of the epoch."""
        epoch, done = divmod(self.step, self.setting.steps_per_epoch)
        accumulate = self.config.accumulate
        parts = self.setting.task.train_batches(
            self.setting.part_size,
            epoch=epoch,
            seed=self.config.seed,
            rank=self.ranks.rank,
            world=self.ranks.size,
            skip=done * accumulate,
        )
        return islice(parts, (self.setting.steps_per_epoch - done) * accumulate)

    def _products(self) -> dict[str, int]:
        setting = self.setting
        weights = [row.name for row in setting.sparsifier.plan.sparse]
        return multiply_adds(setting.model, lambda: setting.model(setting.example), weights)

    def _begin(self, resumed: bool) -> None:
        if self.ranks.first:
            plan = self.setting.sparsifier.plan.to_json()
            self.folder.begin(self.config, environment(self.ranks.device), plan, resumed)
        self.journal.write(
            "start",
            self.step,
            epoch=self.epoch,
            total_steps=self.setting.total_steps,
            resumed=resumed,
            train_size=self.setting.task.train_size,
            eval_size=self.setting.task.eval_size,
            steps_per_epoch=self.setting.steps_per_epoch,
        )
        if not resumed:
            self.journal.write("sparsity", 0, **self.masks.look())

    def _not_finite(self, step: int, loss: float) -> StateError:
        """The error that ends a run when losses or weights are not finite any more."""
        names, row = broken(self.setting.model), self.finite.in_a_row
        wrong = f"no finite loss in {row} steps, all skipped" if row else "the loss is finite, but weights are not"
        found = f"; {len(names)} weights are not finite, the first is {names[0]}" if names else ""
        return StateError(
            where=f"training step {step} (epoch {step / self.setting.steps_per_epoch:.2f}) of {self.folder.path}",
            given=f"a loss of {loss / self.ranks.size:g} at a learning rate of {self.lr:.3g}",
            wrong=wrong + found,
            fix="lower optim.lr, lengthen optim.warmup_epochs or set optim.clip_norm, and give --resume none or "
            "another --out (the last checkpoint is valid, but resumes with its own settings)",
        )


def _labels(config: TrainConfig) -> dict[str, Any]:
    return {
        "method": config.method.name,
        "pattern": config.method.pattern,
        "seed": config.seed,
        "data": config.data.name,
        "model": config.model.name,
        "epochs": config.epochs,
    }


def _density(model: nn.Module, sparse: list[str]) -> float:
    """The fraction of the sparse layers' weights that is not zero."""
    weights = [model.get_parameter(name) for name in sparse]
    entries = sum(weight.numel() for weight in weights)
    return int(sum(weight.count_nonzero() for weight in weights)) / entries if entries else 1.0
