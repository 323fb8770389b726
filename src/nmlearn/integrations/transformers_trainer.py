"""N:M sparsity in the Trainer of Hugging Face's transformers: a callback.

    from nmlearn.integrations.transformers import NMCallback

    trainer = Trainer(model, args, train_dataset=data, callbacks=[NMCallback(nm.LBC("2:4"))])
    trainer.train()                  # learns, logs, saves with every checkpoint, and verifies at the end
    trainer.save_model()             # an ordinary model with zeros in place

For transformers 5; see docs/huggingface.md.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor

from nmlearn.errors import AttachError, StateError
from nmlearn.files.atomic import write_atomic
from nmlearn.integrations import distilling, torchvision
from nmlearn.learn.compact import packed
from nmlearn.learn.distillation import Distillation
from nmlearn.learn.optimizers import innermost
from nmlearn.learn.sparsifier import Sparsifier
from nmlearn.maths import masks
from nmlearn.methods.method import Method
from nmlearn.model.plan import Plan, Rule
from nmlearn.model.shards import gathered, is_sharded

torchvision.load()

from transformers.trainer_callback import TrainerCallback  # noqa: E402

if TYPE_CHECKING:
    from transformers import Trainer

FILE = "nmlearn.pt"  # next to optimizer.pt in every checkpoint
FORMAT = 1
_STEPS_IN_BACKWARD = ("LayerWiseDummyOptimizer", "Lomo", "AdaLomo")
# What is wrong with some optimizers, and what to do instead.
_IN_BACKWARD = (
    "it steps inside backward, and gradients are gone before the sparsifier can read them",
    "choose an optimizer that steps after backward, such as adamw_torch",
)
_COPIES = ("DeepSpeed steps its own copies of the weights", "train with DDP or FSDP 2")


class NMCallback(TrainerCallback):
    """Learns N:M sparsity in a Trainer; one callback for one Trainer.

    It attaches when training begins, writes its state into every checkpoint and reads it back on
    ``resume_from_checkpoint``. It adds ``nm_density``, ``nm_progress`` and ``nm_mask_change`` to the Trainer's logs,
    and verifies every group when training ends. If the Trainer looks for a best model, only checkpoints from after the
    last removal count.

    Args:
        method: the method; its pattern applies where no rule says otherwise.
        rules: see :func:`nmlearn.model.plan.plan`.
        finalize: False leaves ``callback.sparsifier.finalize()`` to the caller, for training that may stop early.
        distillation: adds its loss to the Trainer's own; "copy" is the model when training begins. Its state stands in
            the checkpoints too, and its last loss in the logs, as ``nm_distillation``.

    Raises:
        PlanError, PatternError: rules that do not fit the model, when the Trainer is created.
        AttachError: what is not supported: DeepSpeed, FSDP 1, optimizers that step in backward or lack the weights, a
            callback that another training run is using.
        StateError: training resumes from a checkpoint without this callback's state, or with another's.
        ViolationError: training stopped before the schedule did.
    """

    def __init__(
        self,
        method: Method,
        rules: Mapping[str, Rule] | None = None,
        *,
        finalize: bool = True,
        distillation: Distillation | None = None,
    ) -> None:
        self.method, self.rules, self.finalize, self.distillation = method, rules, finalize, distillation
        self._sparsifier: Sparsifier | None = None
        self._last_masks: dict[str, Tensor] = {}
        self._best_fits = False
        self._undo: list[Callable[[], None]] = []

    @property
    def sparsifier(self) -> Sparsifier:
        """The sparsifier: created with the Trainer, attached while it trains.

        Raises:
            StateError: there is no Trainer yet.
        """
        if self._sparsifier is None:
            fix = "create the Trainer with callbacks=[callback] first; after add_callback, call train() first"
            raise StateError(where="NMCallback", given="no Trainer", wrong="there is no model yet", fix=fix)
        return self._sparsifier

    @property
    def plan(self) -> Plan:
        """The sparse layers, and why the rest stays dense; print it before training."""
        return self.sparsifier.plan

    # Beginning

    def on_init_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Plan, so that mistakes in the rules show before anything runs."""
        _refuse_arguments(args)
        if model is not None and not self._attached():
            self._sparsifier = Sparsifier(model, self.method, self.rules)
            if self.distillation is not None:
                self.distillation.check(model)

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **kwargs: Any
    ) -> None:
        """Attach to the optimizer, and resume from a checkpoint if the Trainer does."""
        _refuse_arguments(args)
        _refuse_optimizer(optimizer)
        trainer, folder = _calling_trainer()
        if trainer is not None:
            self._move_first(trainer)
        self._release(model)
        self._let_go()
        try:
            if self.distillation is not None:
                self._distil(self.distillation, model, trainer)
            self._sparsifier = Sparsifier(model, self.method, self.rules)
            self._sparsifier.attach(optimizer, state.max_steps, travels=False)  # in checkpoints it has its own file
            self._best_fits = False
            if state.global_step > 0:
                self._resume(Path(folder or _checkpoint(args, state)) / FILE, state)
        except BaseException:
            self._let_go()
            raise
        self._last_masks = self._masks()
        if hasattr(trainer, "_run_epoch"):  # private: other versions may call it otherwise
            self._undo.append(distilling.replace(trainer, "_run_epoch", self._watched))

    def _watched(self, run_epoch: Callable[..., Any]) -> Callable[..., Any]:
        """Detach when an epoch fails or is interrupted: no event tells callbacks of that."""

        def run(*args: Any, **kwargs: Any) -> Any:
            try:
                return run_epoch(*args, **kwargs)
            except BaseException:
                self._let_go()
                self.sparsifier.detach()
                raise

        return run

    def _distil(self, distillation: Distillation, model: Any, trainer: Trainer | None) -> None:
        """Add the loss of a distillation to the Trainer's, before a sparsifier changes the model."""
        if trainer is None:
            wrong = "the Trainer was not found in the call stack, and a callback cannot add to a loss"
            _refuse("NMCallback(distillation=...)", "no Trainer", wrong, "call trainer.train() itself")
        distillation.attach(model)

        def wrap(compute_loss: Callable[..., Any]) -> Callable[..., Any]:
            def compute(model: Any, *args: Any, **kwargs: Any) -> Any:
                found = compute_loss(model, *args, **kwargs)
                if not (model.training and torch.is_grad_enabled()):
                    return found
                more = distillation.loss() / _parts(trainer, kwargs.get("num_items_in_batch"))
                return (found[0] + more, *found[1:]) if isinstance(found, tuple) else found + more

            return compute

        self._undo.append(distilling.replace(trainer, "compute_loss", wrap))

    def _let_go(self) -> None:
        """Put back what was replaced in the Trainer, and take the hooks off the model."""
        while self._undo:
            self._undo.pop()()
        if self.distillation is not None:
            self.distillation.remove()

    def _attached(self) -> bool:
        return self._sparsifier is not None and self._sparsifier.total_steps > 0

    def _release(self, model: Any) -> None:
        """Detach from a training run of the same model that ended without notice: interrupted, or out of memory."""
        if not self._attached():
            return
        if self.sparsifier.model is not model:
            wrong = "another Trainer is training with it"
            raise AttachError(where="NMCallback", given="one callback", wrong=wrong, fix="create one for each Trainer")
        self.sparsifier.detach()

    def _move_first(self, trainer: Trainer) -> None:
        """Move before the callbacks that write logs (TensorBoard ...), so that they see what is added to these."""
        line = trainer.callback_handler.callbacks
        line.remove(self)
        line.insert(0, self)

    # Saving and resuming

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Add the sparsifier's state to the checkpoint that was just written."""
        if not self._attached() or args.save_only_model or state.is_hyper_param_search:
            return
        saved = {
            "format": FORMAT,
            "global_step": state.global_step,
            "best_fits": self._best_fits,
            "sparsifier": packed(gathered(self.sparsifier.state_dict())),
            "distillation": None if self.distillation is None else self.distillation.state_dict(),
        }
        if args.should_save:
            write_atomic(_checkpoint(args, state) / FILE, lambda file: torch.save(saved, file))

    def on_push_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """An upload of a checkpoint begins before on_save: add the state now, if one process can do that."""
        if self._attached() and _checkpoint(args, state).is_dir() and not self._sharded():
            self.on_save(args, state, control)

    def _sharded(self) -> bool:
        return any(is_sharded(row.parameter) for row in self.plan.sparse)

    def _resume(self, path: Path, state: Any) -> None:
        try:
            saved = _read(path)
            if saved["global_step"] != state.global_step:
                wrong = f"it was saved at step {saved['global_step']}, and training resumes at {state.global_step}"
                fix = "resume from a complete checkpoint"
                raise StateError(where=str(path), given="this file", wrong=wrong, fix=fix)
            self.sparsifier.load_state_dict(saved["sparsifier"])
            distilling.resume(self.distillation, saved.get("distillation"), str(path))
        except StateError:
            self.sparsifier.detach()
            raise
        self._best_fits = saved["best_fits"]

    # While training

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Add the sparsifier's progress to the logs of a training step."""
        if not self._attached() or not logs or "loss" not in logs:
            return
        before, self._last_masks = self._last_masks, self._masks()
        kept, changed, size = self._counts(before).tolist()
        ours = {
            "nm_density": kept / size,
            "nm_progress": self.sparsifier.progress,
            "nm_mask_change": changed / size,
        }
        if self.distillation is not None and self.distillation.last is not None:
            ours["nm_distillation"] = self.distillation.last.item()
        logs.update(ours)
        state.log_history[-1].update(ours)  # the Trainer put a copy there already

    def _counts(self, before: Mapping[str, Tensor]) -> Tensor:
        """int64 ``[3]`` over all sparse weights: values kept, values whose mask changed, and all values."""
        counts = masks.counts(self._last_masks, before)
        if self._sharded():
            dist.all_reduce(counts)
        return counts

    def _masks(self) -> dict[str, Tensor]:
        return {name: mask.clone() for name, mask in self.sparsifier.masks().items()}

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Record whether the evaluated model, which may become the best, fits its patterns."""
        if self._attached():
            self._best_fits = self.sparsifier.ended

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Forget a best model that does not fit its patterns: the next evaluated one is better."""
        if self._attached() and not self._best_fits:
            state.best_metric = state.best_global_step = state.best_model_checkpoint = None

    # Ending

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Verify and detach; by now the Trainer has loaded its best model, if it should."""
        if not self._attached():
            return
        self._last_masks = {}
        self._let_go()
        pruned = state.is_hyper_param_search and state.global_step < state.max_steps  # an unpromising trial
        if pruned:
            self.sparsifier.detach()
        elif self.finalize:
            try:
                self.sparsifier.finalize()
            finally:
                self.sparsifier.detach()


def _refuse_arguments(args: Any) -> None:
    """Refuse what TrainingArguments already show.

    Raises:
        AttachError: DeepSpeed, optimizers that step in backward, checkpoints without calls of callbacks.
    """
    optim = str(getattr(args.optim, "value", args.optim))
    if getattr(args, "deepspeed", None):
        _refuse("TrainingArguments.deepspeed", "a configuration", *_COPIES)
    if optim.endswith("layerwise") or "lomo" in optim:
        _refuse("TrainingArguments.optim", optim, *_IN_BACKWARD)
    if getattr(args, "enable_jit_checkpoint", False):
        wrong = "callbacks are not called for these checkpoints"
        _refuse("TrainingArguments.enable_jit_checkpoint", "True", wrong, "use save_steps")


def _refuse_optimizer(optimizer: Any) -> None:
    """Refuse what shows only after the Trainer has prepared the optimizer.

    Raises:
        AttachError: DeepSpeed, optimizers that step in backward.
    """
    inner = type(innermost(optimizer)).__name__
    if "deepspeed" in f"{type(optimizer).__module__} {type(optimizer).__name__}".lower():
        _refuse("optimizer", type(optimizer).__name__, *_COPIES)
    if inner in _STEPS_IN_BACKWARD:
        _refuse("optimizer", inner, *_IN_BACKWARD)


def _refuse(where: str, given: str, wrong: str, fix: str) -> NoReturn:
    raise AttachError(where=where, given=given, wrong=wrong, fix=fix)


def _parts(trainer: Trainer, items: Any) -> int:
    """Into how many parts of a step the mean of one has to be divided: 1 where the Trainer does it."""
    scaled = getattr(trainer, "loss_is_scaled_for_ga", None)  # what transformers 5.23 calls it; others compute it alike
    if scaled is None:
        scaled = (trainer.model_accepts_loss_kwargs and items is not None) or trainer.compute_loss_func is not None
    return trainer.current_gradient_accumulation_steps if scaled else 1


def _calling_trainer() -> tuple[Trainer | None, str | None]:
    """The Trainer whose event this is, and the folder it resumes from.

    A callback receives neither, so they are looked up in the call stack. Training works without them too, but some
    loggers miss the logs, and checkpoints are searched for in ``output_dir``.
    """
    from transformers import Trainer

    frame = inspect.currentframe()
    while frame is not None:
        trainer = frame.f_locals.get("self")
        if isinstance(trainer, Trainer) and "resume_from_checkpoint" in frame.f_locals:
            folder = frame.f_locals["resume_from_checkpoint"]
            return trainer, None if isinstance(folder, bool) else folder
        frame = frame.f_back
    return None, None


def _checkpoint(args: Any, state: Any) -> Path:
    return Path(os.fspath(args.output_dir)) / f"checkpoint-{state.global_step}"


def _read(path: Path) -> dict[str, Any]:
    """What on_save wrote; nothing in it is executed.

    Raises:
        StateError: no such file, or not one of ours.
    """
    if not path.is_file():
        wrong = f"no {FILE} there: it was saved without NMCallback, or as a model only"
        fix = "resume from a checkpoint that has one, or start new training from this model with from_pretrained"
        raise StateError(where=str(path.parent), given="a checkpoint to resume from", wrong=wrong, fix=fix)
    try:
        saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises RuntimeError, EOFError, UnpicklingError ... for broken files
        wrong = f"it cannot be read: {type(error).__name__}: {error}"
        raise StateError(where=str(path), given="this file", wrong=wrong, fix="resume from another") from error
    if not isinstance(saved, dict) or saved.get("format") != FORMAT:
        wrong = f"not a state of version {FORMAT}"
        raise StateError(where=str(path), given="this file", wrong=wrong, fix="resume from another")
    return saved
