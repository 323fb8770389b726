"""What the callbacks of lightning.pytorch and pytorch_lightning do; neither package is imported here.

Everything happens in the Trainer's hooks. At `on_train_start` weights, optimizers and their states exist and are
restored, so a sparsifier can attach and load its own state. At `on_train_end` it finalizes; however training ends, it
is detached.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nmlearn.errors import AttachError, StateError
from nmlearn.integrations import distilling
from nmlearn.learn.distillation import Distillation
from nmlearn.learn.sparsifier import Sparsifier
from nmlearn.maths import masks
from nmlearn.methods.method import Method
from nmlearn.model.plan import Rule

_SHARDING = ("FSDPStrategy", "DeepSpeedStrategy", "ModelParallelStrategy")
_AVERAGING = ("WeightAveraging", "StochasticWeightAveraging")


class LearningHooks:
    """The hooks of ``NMCallback``, without the framework's base class of callbacks.

    Args:
        method: for instance ``nm.LBC("2:4")``.
        rules: as for :class:`nmlearn.Sparsifier`. Names are those in the ``state_dict`` of the LightningModule, for
            instance "model.hidden", or those inside ``module``.
        module: the qualified name of the submodule to make sparse; "" is the whole LightningModule.
        optimizer: which of several optimizers has its weights: an index into what ``configure_optimizers`` returns.
        total_steps: the number of that optimizer's steps in the whole training run; by default the Trainer's estimate.
        log: whether to log ``nm/progress`` and ``nm/density`` every step and ``nm/mask_change`` every epoch.
        distillation: is attached to ``module``, whose forward ``training_step`` must call, and adds its loss to what
            that returns; "copy" is the module when training begins. Its last loss is logged as ``nm/distillation``.
            With manual optimization add ``callback.distillation.loss()`` yourself.

    Attributes:
        sparsifier: the :class:`nmlearn.Sparsifier`; None before training first starts.
        finalized: whether the model has been verified to be N:M sparse at the end of training.
    """

    def __init__(
        self,
        method: Method,
        rules: Mapping[str, Rule] | None = None,
        *,
        module: str = "",
        optimizer: int | None = None,
        total_steps: int | None = None,
        log: bool = True,
        distillation: Distillation | None = None,
    ) -> None:
        self.method, self.rules, self.module, self.distillation = method, rules, module, distillation
        self.optimizer, self.total_steps, self.log = optimizer, total_steps, log
        self.sparsifier: Sparsifier | None = None
        self.finalized = False
        self._fitting = self._settled = False
        self._epochs: int | None = None
        self._begun = 0  # steps that the Trainer had done when the schedule began
        self._saved: dict[str, Any] = {}
        self._masks: dict[str, Tensor] = {}
        self._seen = (-1, 1.0)  # advances, and the density after them
        self._undo: Callable[[], None] = lambda: None

    # Starting

    @property
    def state_key(self) -> str:
        """The key of this callback's state in a checkpoint; several callbacks may learn on different modules."""
        return f"NMCallback{ {'module': self.module} }"

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Prepare for a new training run: forget the last one, and move behind callbacks that average weights."""
        self._fitting = stage == "fit"
        if not self._fitting:
            return
        if self.sparsifier is not None:
            self.sparsifier.detach()
        self._let_go()
        self.sparsifier, self.finalized, self._saved, self._masks = None, False, {}, {}
        self._epochs = trainer.max_epochs  # SWA adds one later, in which nothing steps
        others = [callback for callback in trainer.callbacks if callback is not self]
        first = next((i for i, other in enumerate(others) if _is(other, "Checkpoint")), len(others))
        trainer.callbacks = [*others[:first], self, *others[first:]]  # a new list: the old one is being iterated over

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Attach, and resume from a checkpoint's state.

        Raises:
            AttachError: sharded weights, an unknown optimizer or number of steps, and what
                :meth:`nmlearn.Sparsifier.attach` raises.
            StateError: a checkpoint of another method, model or training length, or one that had finalized.
        """
        _check_strategy(trainer)
        optimizer = self._chosen(trainer)
        if self.distillation is not None:
            self._distil(self.distillation, pl_module)
        self.sparsifier = Sparsifier(self._target(pl_module), self.method, self.rules)
        steps = self._steps(trainer) if self.total_steps is None else self.total_steps
        self.sparsifier.attach(optimizer, steps, travels=False)
        self._begun = self._before(trainer)
        self._compare_steps(trainer)
        if self._saved:
            self.sparsifier.load_state_dict(self._saved["sparsifier"])
            distilling.resume(self.distillation, self._saved.get("distillation"), "ckpt_path")
            self._saved = {}
        self._settled = self.sparsifier.ended
        self._masks = self.sparsifier.masks() if self.log else {}
        self._seen = (-1, 1.0)

    def _distil(self, distillation: Distillation, pl_module: Any) -> None:
        """Add the loss of a distillation to the module's, before a sparsifier changes it."""
        distillation.attach(self._target(pl_module))

        def wrap(training_step: Callable[..., Any]) -> Callable[..., Any]:
            def step(*args: Any, **kwargs: Any) -> Any:
                output = training_step(*args, **kwargs)
                loss = output.get("loss") if isinstance(output, Mapping) else output
                if loss is None:  # a batch that is skipped
                    return output
                total = loss + self._taught(distillation)
                return {**output, "loss": total} if isinstance(output, Mapping) else total

            return step

        if pl_module.automatic_optimization:
            self._undo = distilling.replace(pl_module, "training_step", wrap)

    def _taught(self, distillation: Distillation) -> Tensor:
        try:
            return distillation.loss()
        except StateError as error:
            if self.module:
                raise
            where, fix = "NMCallback(module=...)", 'name the submodule that training_step calls, such as module="model"'
            raise StateError(where=where, given=error.given, wrong=error.wrong, fix=fix) from error

    def _target(self, pl_module: Any) -> nn.Module:
        module: nn.Module = pl_module.get_submodule(self.module)
        return module

    def _chosen(self, trainer: Any) -> torch.optim.Optimizer:
        optimizers = trainer.optimizers
        number = self.optimizer if self.optimizer is not None else 0
        several = len(optimizers) > 1 and self.optimizer is None
        if several or not 0 <= number < len(optimizers):
            raise AttachError(
                where="NMCallback(optimizer=...)",
                given=self.optimizer,
                wrong=f"configure_optimizers returned {len(optimizers)}",
                fix=f"give the index of the one with the sparse weights: a number from 0 to {len(optimizers) - 1}",
            )
        chosen: torch.optim.Optimizer = optimizers[number]
        return chosen

    def _steps(self, trainer: Any) -> int:
        """The optimizer steps of the whole training run; without a saved state, of the rest of it."""
        if not trainer.lightning_module.automatic_optimization:
            _refuse_steps("manual optimization", "the number of steps in training_step is unknown")
        if _accumulation_changes(trainer):
            _refuse_steps("GradientAccumulationScheduler", "its steps differ from epoch to epoch")
        longer, trainer.fit_loop.max_epochs = trainer.fit_loop.max_epochs, self._epochs
        steps = trainer.estimated_stepping_batches
        trainer.fit_loop.max_epochs = longer
        if steps in (math.inf, -1):
            _refuse_steps(f"a training run of {steps} steps", "a schedule needs an end")
        return int(steps) - self._before(trainer)

    def _compare_steps(self, trainer: Any) -> None:
        """Warn at once where the Trainer will stop before the schedule does, as far as its steps are known."""
        assert self.sparsifier is not None
        by_hand = not trainer.lightning_module.automatic_optimization
        if self.total_steps is None or by_hand or _accumulation_changes(trainer) or not trainer.is_global_zero:
            return
        steps = trainer.estimated_stepping_batches
        if steps in (math.inf, -1):
            return
        last = int(steps) - self._begun
        progress = max(0.0, min(1.0, last / self.total_steps))
        patterns = {row.grouping.pattern for row in self.sparsifier.plan.sparse}
        if not self.method.all_settled(patterns, progress):
            warnings.warn(
                f"the Trainer will stop at step {last} of total_steps={self.total_steps}, before the schedule of the "
                "masks has ended: resume it from a checkpoint later, or give fewer total_steps",
                stacklevel=2,
            )

    def _before(self, trainer: Any) -> int:
        """The Trainer's steps before the schedule: those of a dense training run that it continues."""
        return int(self._saved.get("begun", 0) if self._saved else trainer.global_step)

    # During training

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Log, and restart the rankings of checkpoints when the masks have reached their pattern."""
        assert self.sparsifier is not None
        moved = self.sparsifier.advances != self._seen[0]
        if moved:
            self._seen = (self.sparsifier.advances, self._density())
        if not self._settled and self.sparsifier.ended:
            self._settled = True
            for other in trainer.callbacks:
                _restart(other)
        if self.log and not trainer.barebones:
            values: dict[str, Any] = {"nm/progress": self.sparsifier.progress, "nm/density": self._seen[1]}
            if self.distillation is not None and self.distillation.last is not None:
                values["nm/distillation"] = self.distillation.last
            pl_module.log_dict(values, on_step=True, on_epoch=False, batch_size=1)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Log the share of mask entries that changed in this epoch."""
        if not self.log or trainer.barebones:
            return
        assert self.sparsifier is not None
        before, self._masks = self._masks, self.sparsifier.masks()
        _, changed, entries = masks.counts(self._masks, before).tolist()
        pl_module.log("nm/mask_change", changed / max(1, entries), sync_dist=trainer.world_size > 1)

    def _density(self) -> float:
        assert self.sparsifier is not None
        kept, _, entries = masks.counts(self.sparsifier.masks(), {}).tolist()
        return kept / max(1, entries)

    # Ending

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Finalize, including an average that another callback has put into the model.

        If training stopped before the masks reached their pattern, warn: training can be resumed from a checkpoint.

        Raises:
            ViolationError: the schedule has ended and some weight breaks its pattern.
        """
        assert self.sparsifier is not None
        if not self.sparsifier.ended:
            if trainer.is_global_zero:
                warnings.warn(_unfinished(self.sparsifier), stacklevel=2)
            return
        if any(_is(other, *_AVERAGING) for other in trainer.callbacks):
            self.sparsifier.finalize(model=self._target(pl_module))
        self.sparsifier.finalize()
        self.finalized, self._masks = True, {}

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Detach after an error or an interruption; checkpoints that are saved now still have the state."""
        self._release()

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Detach after training that stopped before its schedule ended."""
        self._release()

    def _release(self) -> None:
        if self.sparsifier is not None and self.sparsifier.total_steps:
            self._saved, self._masks = self.state_dict(), {}
            self.sparsifier.detach()
        self._let_go()

    def _let_go(self) -> None:
        """Put back the module's training step, and take the hooks off it."""
        self._undo()
        if self.distillation is not None:
            self.distillation.remove()

    # Saving, resuming

    def state_dict(self) -> dict[str, Any]:
        """This callback's state for a checkpoint: the sparsifier's state, or that it has finalized."""
        if self._saved or self.finalized:
            return self._saved or {"finalized": True}
        if self.sparsifier is None or not self.sparsifier.total_steps:
            return {}
        state = {"sparsifier": self.sparsifier.state_dict(compact=True), "begun": self._begun}
        return state if self.distillation is None else state | {"distillation": self.distillation.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state until training starts: the Trainer passes it before optimizers exist.

        Raises:
            StateError: the state of a training run that had finalized, for any method except :class:`nmlearn.Keep`.
        """
        if not self._fitting:  # validation or test with a checkpoint: the weights are all that is needed
            return
        finalized = bool(state_dict.get("finalized"))
        if finalized and self.method.name != "keep":
            raise StateError(
                where="ckpt_path",
                given="a checkpoint from after the end of training",
                wrong="learning was finalized and its state freed",
                fix='resume from one saved during training, or keep its zeros with NMCallback(nm.Keep("N:M"))',
            )
        self._saved = {} if finalized else state_dict


def _is(callback: Any, *names: str) -> bool:
    """Whether a callback's class has one of these names, in either of the two packages."""
    return any(kind.__name__ in names for kind in type(callback).__mro__)


def _accumulation_changes(trainer: Any) -> bool:
    """Whether an epoch accumulates more batches a step than another."""
    return any(
        _is(other, "GradientAccumulationScheduler")
        and other.going_to_accumulate_grad_batches()
        and len(other.scheduling) > 1
        for other in trainer.callbacks
    )


def _check_strategy(trainer: Any) -> None:
    if _is(trainer.strategy, *_SHARDING):
        raise AttachError(
            where="Trainer(strategy=...)",
            given=type(trainer.strategy).__name__,
            wrong="it flattens or shards weights, and its checkpoints contain callbacks' states of only one process",
            fix='use "ddp", or your own loop with FSDP2, which the sparsifier supports',
        )


def _refuse_steps(given: str, wrong: str) -> None:
    fix = "give total_steps, the number of steps of its optimizer, or max_epochs or max_steps to the Trainer"
    raise AttachError(where="NMCallback(total_steps=...)", given=given, wrong=wrong, fix=fix)


def _restart(callback: Any) -> None:
    """Reset what monitors a metric: a denser model's score is no baseline for sparse ones.

    Checkpoints so far get the worst possible score, so that ModelCheckpoint itself replaces them by the next ones.
    """
    if _is(callback, "ModelCheckpoint") and callback.monitor is not None:
        worst = torch.tensor(math.inf if callback.mode == "min" else -math.inf)
        callback.best_k_models = dict.fromkeys(callback.best_k_models, worst)
        callback.best_model_score = callback.kth_value = worst
    elif _is(callback, "EarlyStopping"):
        callback.best_score = torch.tensor(math.inf if callback.mode == "min" else -math.inf)
        callback.wait_count = 0


def _unfinished(sparsifier: Sparsifier) -> str:
    return (
        f"training stopped at progress {sparsifier.progress:.3f} of the schedule, before the masks reached their "
        "pattern: the model is not N:M sparse; resume it from a checkpoint, or set total_steps"
    )
