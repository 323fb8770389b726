"""The sparsifier: puts a method on a model and lives beside its optimizer.

The model is never changed: no wrapped layers, no parametrization, no extra parameters. Hooks on ``optimizer.step``
learn before it and write into the weights after it, so that at every other moment the model is an ordinary one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from nmlearn.errors import AttachError, StateError
from nmlearn.learn import optimizers, refusals, states
from nmlearn.learn.fused_sgd import Ahead
from nmlearn.learn.quiet import Quiet
from nmlearn.learn.weight import Taken, WeightStatus, gradient_hook
from nmlearn.maths import masks
from nmlearn.maths.verify import verify
from nmlearn.methods.method import Batch, Method
from nmlearn.model import plan as targets
from nmlearn.model.plan import Plan, Rule
from nmlearn.model.shards import like_weight, local, placed, shard


@dataclass
class _Attachment:
    optimizer: Optimizer
    total_steps: int
    ahead: Ahead
    around: tuple[Any, Any]
    hooks: list[Any] = field(default_factory=list)
    step: int = 0
    skip: bool = False


class Sparsifier:
    """Learns an N:M sparse form of a model while its own training loop trains it.

        sparsifier = nm.Sparsifier(model, nm.LBC("2:4"))
        sparsifier.attach(optimizer, total_steps)
        ...                      # the training loop, unchanged
        sparsifier.finalize()

    Args:
        model: any module; it is never modified but for the values of its weights. With FSDP2, shard first.
        method: what to do; its pattern holds where no rule says otherwise.
        rules: see :func:`nmlearn.model.plan.plan`.

    Attributes:
        plan: what is taken, and why the rest is left dense; print it.
        advances: how many masks have moved along their schedule so far.

    Raises:
        PlanError, PatternError: rules that cannot be followed.
        AttachError: a model whose weights cannot be seen (FSDP1).
    """

    def __init__(self, model: nn.Module, method: Method, rules: Mapping[str, Rule] | None = None) -> None:
        refusals.check_model(model)
        self.model = model
        self.method = method
        self.plan: Plan = targets.plan(model, method, rules)
        self.advances = 0
        self._attached: _Attachment | None = None
        self._taken: list[Taken] = []

    # What it knows

    @property
    def step(self) -> int:
        """Optimizer steps done since attach; steps that a GradScaler skipped do not count."""
        return self._attached.step if self._attached else 0

    @property
    def total_steps(self) -> int:
        """The number of optimizer steps of the whole training, as given to attach; 0 before."""
        return self._attached.total_steps if self._attached else 0

    @property
    def progress(self) -> float:
        """step / total_steps, clamped to 1."""
        return min(1.0, self.step / self.total_steps) if self.total_steps else 0.0

    def status(self) -> list[WeightStatus]:
        """Where each taken weight stands. Reads the masks of methods that move them on every step."""
        return [
            WeightStatus(
                name=taken.name,
                pattern=taken.grouping.pattern,
                shape=tuple(taken.parameter.shape),
                survivors=self.method.survivors(taken.state, taken.grouping),
                combinations=taken.grouping.pattern.combinations,
                density=masks.density(self._mask(taken)) if self.method.keeps_dense else taken.density,
            )
            for taken in self._taken
        ]

    def masks(self) -> dict[str, Tensor]:
        """What is kept now: qualified name to a bool tensor of the (local) weight's shape."""
        return {taken.name: self._mask(taken) for taken in self._taken}

    def state_bytes(self) -> int:
        """Bytes held beside the model now; 0 after finalize."""
        return sum(t.numel() * t.element_size() for taken in self._taken for t in taken.state.values())

    def _mask(self, taken: Taken) -> Tensor:
        return self.method.mask(local(taken.parameter), taken.state)

    # Attaching

    @torch.no_grad()
    def attach(self, optimizer: Optimizer, total_steps: int) -> Sparsifier:
        """From here on ``optimizer.step()`` learns.

        Args:
            optimizer: any torch optimizer that holds every taken weight.
            total_steps: how often it will step in the whole training; progress is steps done over this.

        Returns:
            The sparsifier itself.

        Raises:
            AttachError: attached already, total_steps below 1, an optimizer that misses a taken weight, steps in
                backward or evaluates its closure several times a step, or weights whose shards cut groups.
        """
        optimizers.check(optimizer, total_steps, self.method.keeps_dense)
        optimizer = optimizers.innermost(optimizer)
        groups = {id(p): i for i, group in enumerate(optimizer.param_groups) for p in group["params"]}
        self._check_attach(optimizer)
        self._taken = [self._take(row, groups[id(row.parameter)], optimizer) for row in self.plan.taken]
        # What a step does here changes with the schedule: compiled, it would be compiled anew again and again.
        around = torch.compiler.disable(self._before_step), torch.compiler.disable(self._after_step)
        hooks = self._hooks(optimizer, *around)
        self._attached = _Attachment(optimizer, total_steps, Ahead(optimizer), around, hooks)
        self._measure(self._taken)
        self._write(self._written())
        return self

    def _take(self, row: targets.PlanRow, lr_group: int, optimizer: Optimizer) -> Taken:
        state = self.method.init(row.name, local(row.parameter), row.grouping)
        shapes = {key: tuple(t.shape) for key, t in placed(state, row.parameter, row.grouping).items()}
        quiet = Quiet(row.parameter, optimizer)
        return Taken(row.name, row.parameter, row.grouping, lr_group, state, quiet, shapes)

    def _hooks(self, optimizer: Optimizer, before: Any, after: Any) -> list[Any]:
        around = [optimizer.register_step_pre_hook(before), optimizer.register_step_post_hook(after)]
        if not self.method.masks_weights or self.method.keeps_dense:
            return around
        clearing = [(t.parameter, torch.compiler.disable(gradient_hook(t))) for t in self._taken]
        return around + [weight.register_post_accumulate_grad_hook(clear) for weight, clear in clearing]

    def _check_attach(self, optimizer: Optimizer) -> None:
        if self._attached:
            raise AttachError(
                where="attach",
                given=type(optimizer).__name__,
                wrong="this sparsifier is attached already",
                fix="make a new one, or detach() first",
            )
        hooks = [getattr(hook, "__wrapped__", hook) for hook in optimizer._optimizer_step_pre_hooks.values()]
        others = [getattr(hook, "__self__", None) for hook in hooks]
        theirs = [id(t.parameter) for other in others if isinstance(other, Sparsifier) for t in other._taken]
        refusals.check_weights(self.plan, self.model, optimizer, theirs)

    def detach(self) -> None:
        """Take all hooks off and free the state. The weights stay as they are."""
        if self._attached:
            for hook in self._attached.hooks:
                hook.remove()
        self._attached, self._taken = None, []

    # Around optimizer.step

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
        assert self._attached is not None
        refusals.check_capture(self._taken[0].parameter)
        self._attached.skip = optimizers.only_makes_state(optimizer, kwargs)
        return None if self._attached.skip else optimizers.before_stepping(args, kwargs, self._learn)

    @torch.no_grad()
    def _learn(self) -> None:
        assert self._attached is not None
        optimizer = self._attached.optimizer
        self._attached.skip = optimizers.unscale(optimizer)
        if self._attached.skip or not self.method.masks_weights:
            return
        self._check_gradients()
        for taken in self._written():
            self._look(taken)
        stepped: list[Taken] = []
        for lr_group in {taken.lr_group for taken in self._taken}:
            moved = [t for t in self._taken if t.lr_group == lr_group and t.parameter.grad is not None]
            if moved:
                group = optimizer.param_groups[lr_group]
                parameters = [t.parameter for t in moved]
                weight_step = self._attached.ahead.weight_step(group, parameters, self._attached.around)
                batch = replace(self._batch(moved, grads=True), weight_step=weight_step)
                self.method.learn(batch, float(group["lr"]))
                stepped += [moved[i] for i in batch.stepped]
        self._attached.ahead.hide([taken.parameter for taken in stepped])
        if self.method.keeps_dense:
            for taken in self._taken:
                local(taken.parameter).copy_(taken.state["dense"])

    def _check_gradients(self) -> None:
        """Find out why no weight has a gradient, and have each placed as its weight is."""
        if all(taken.parameter.grad is None for taken in self._taken):
            refusals.check_replaced(self.plan, self.model)
        for parameter in [taken.parameter for taken in self._taken]:
            if parameter.grad is not None and (placed := like_weight(parameter.grad, parameter)) is not parameter.grad:
                parameter.grad = placed

    def _look(self, taken: Taken) -> None:
        """See what others wrote since the last step: into the gradient after it was cleared, or into the weight."""
        weight = local(taken.parameter)
        if self.method.keeps_dense:
            if weight._version != taken.writes:  # a loaded or clamped weight is meant for the dense one
                theirs = (taken.state["keep"] != 0) | (weight != 0)
                taken.state["dense"].copy_(torch.where(theirs, weight, taken.state["dense"]))
            return
        if not taken.quiet.gradient_is_clear():
            masks.clear_(local(taken.parameter.grad), taken.state["keep"])  # type: ignore[arg-type]
        taken.quiet.before_step()

    @torch.no_grad()
    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        assert self._attached is not None
        if self._attached.skip:
            return
        self._attached.ahead.show()
        if self.method.keeps_dense:
            for taken in self._taken:
                taken.state["dense"].copy_(local(taken.parameter))
        self._count()

    @torch.no_grad()
    def skip_step(self) -> None:
        """In place of ``optimizer.step()``, when a loop leaves a step out: nothing is learned, the schedule goes on."""
        for taken in self._written():
            self._look(taken)
            if self.method.keeps_dense:
                local(taken.parameter).copy_(taken.state["dense"])
        self._count()

    def _count(self) -> None:
        """A step has passed: follow the schedule, and write what the network shall compute with."""
        if self._attached is None:
            return
        self._attached.step += 1
        for taken in self._taken:
            self._advance(taken)
        written = self._written()
        self._write([t for t in written if self.method.keeps_dense or t.quiet.needs_clearing()])
        if not self.method.keeps_dense:
            for taken in written:
                taken.quiet.after_step(taken.state["keep"])

    def _advance(self, taken: Taken) -> None:
        value = self.method.value(taken.grouping.pattern, self.progress)
        if value == taken.value:
            return
        moved = self.method.advance(taken.name, local(taken.parameter), taken.state, taken.grouping, value)
        taken.value = value
        if moved:
            self.advances += 1
            self._measure([taken])

    def _write(self, some: list[Taken]) -> None:
        self.method.use(self._batch(some))
        for taken in some:
            taken.writes = local(taken.parameter)._version

    def _written(self) -> list[Taken]:
        """The weights that the method writes into: nothing is owed to a mask that keeps everything."""
        if not self.method.masks_weights:
            return []
        return [taken for taken in self._taken if taken.density < 1.0 or self.method.keeps_dense]

    def _measure(self, moved: list[Taken]) -> None:
        for taken in moved:
            taken.density = masks.density(self._mask(taken))
            taken.quiet.disturb()

    def _batch(self, some: list[Taken], grads: bool = False) -> Batch:
        return Batch(
            weights=[local(taken.parameter) for taken in some],
            grads=[local(g) for taken in some if (g := taken.parameter.grad) is not None] if grads else [],
            states=[taken.state for taken in some],
            groupings=[taken.grouping for taken in some],
        )

    # Ending, saving, resuming

    @torch.no_grad()
    def finalize(self, model: nn.Module | None = None) -> None:
        """Verify every group of every taken weight, then detach and free the state.

        Args:
            model: an averaged copy (EMA, SWA) instead: its weights are given the final masks and verified; a moving
                mask leaves averages denser than the pattern. The sparsifier itself stays as it is.

        Raises:
            ViolationError: a table of the weights that break their pattern; nothing is detached then.
            PlanError: the given model lacks a taken weight.
        """
        own = {row.name: row.parameter for row in self.plan.taken if self.method.masks_weights}
        if model is None:
            self._verify({name: local(weight) for name, weight in own.items()})
            self.detach()
            return
        # Without a state this sparsifier is final itself: the model's own zeros are the masks then.
        final = self.masks() or {name: local(weight) != 0 for name, weight in own.items()}
        self._verify({name: final[name] for name in own})
        for name, weight in targets.by_name(model, list(own)).items():
            masks.clear_(local(weight), masks.bits(final[name]).to(weight.device))

    def _verify(self, tensors: dict[str, Tensor]) -> None:
        cuts = {row.name: row.grouping for row in self.plan.taken}
        verify({name: (tensor, cuts[name]) for name, tensor in tensors.items()}, self.progress)

    def state_dict(self) -> dict[str, Any]:
        """All it needs to go on: tensors by the weights' qualified names, text and numbers."""
        return {
            "format": states.FORMAT,
            "method": self.method.name,
            "options": self.method.describe(),
            "total_steps": self.total_steps,
            "step": self.step,
            "advances": self.advances,
            "weights": {
                taken.name: {
                    "pattern": str(taken.grouping.pattern),
                    "value": taken.value,
                    "state": placed(taken.state, taken.parameter, taken.grouping),
                }
                for taken in self._taken
            },
        }

    @torch.no_grad()
    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from a saved state, bit for bit; call after attach, and load model and optimizer too.

        Raises:
            StateError: not attached, or a state of another method, pattern, model or training length: the first
                difference is named.
        """
        if self._attached is None:
            raise StateError(
                where="load_state_dict",
                given="a sparsifier that is not attached",
                wrong="its state is made by attach",
                fix="call attach(optimizer, total_steps) first",
            )
        shapes = {taken.name: taken.shapes for taken in self._taken}
        states.check_same(saved, self.state_dict(), shapes, self.method.ended)
        self._attached.step, self.advances = int(saved["step"]), int(saved["advances"])
        for taken in self._taken:
            entry = saved["weights"][taken.name]
            taken.value = entry["value"]
            taken.state.clear()
            needed = states.needed(taken.shapes, self.method.ended(taken.grouping.pattern, taken.value))
            shards = {key: shard(entry["state"][key], taken.parameter) for key in needed}
            taken.state.update(states.copied(shards, local(taken.parameter)))
        self._measure(self._taken)
        self._write(self._written())
