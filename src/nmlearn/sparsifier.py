"""The sparsifier: puts a method on a model and lives beside its optimizer.

The model is never changed: no wrapped layers, no parametrization, no extra parameters. Hooks on ``optimizer.step``
learn before it and write into the weights after it, so that at every other moment the model is an ordinary one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from nmlearn import masks, states, targets
from nmlearn.errors import AttachError, StateError
from nmlearn.groups import Grouping
from nmlearn.methods.method import Batch, Method, State
from nmlearn.pattern import Pattern
from nmlearn.quiet import Quiet
from nmlearn.targets import Plan, Rule
from nmlearn.verify import verify


@dataclass
class _Taken:
    """A weight under a method, with its state and what the schedule has come to."""

    name: str
    parameter: nn.Parameter
    grouping: Grouping
    lr_group: int
    state: State
    quiet: Quiet
    value: int | None = None
    density: float = 1.0


@dataclass(frozen=True)
class WeightStatus:
    """Where one weight stands: its density now, and how many combinations its groups still choose from."""

    name: str
    pattern: Pattern
    shape: tuple[int, ...]
    survivors: int | None
    combinations: int | None
    density: float


@dataclass
class _Attachment:
    optimizer: Optimizer
    total_steps: int
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
        rules: see :func:`nmlearn.targets.plan`.

    Attributes:
        plan: what is taken, and why the rest is left dense; print it.
        advances: how many masks have moved along their schedule so far.

    Raises:
        PlanError, PatternError: rules that cannot be followed.
    """

    def __init__(self, model: nn.Module, method: Method, rules: Mapping[str, Rule] | None = None) -> None:
        self.model = model
        self.method = method
        self.plan: Plan = targets.plan(model, method, rules)
        self.advances = 0
        self._attached: _Attachment | None = None
        self._taken: list[_Taken] = []

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
                density=_density(self._mask(taken)) if self.method.keeps_dense else taken.density,
            )
            for taken in self._taken
        ]

    def masks(self) -> dict[str, Tensor]:
        """What is kept now: qualified name to a bool tensor of the (local) weight's shape."""
        return {taken.name: self._mask(taken) for taken in self._taken}

    def state_bytes(self) -> int:
        """Bytes held beside the model now; 0 after finalize."""
        return sum(t.numel() * t.element_size() for taken in self._taken for t in taken.state.values())

    def _mask(self, taken: _Taken) -> Tensor:
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
            AttachError: attached already, an optimizer that misses a taken weight or that evaluates its closure several
                times a step, or total_steps below 1.
        """
        self._check_attach(optimizer, total_steps)
        groups = {id(p): i for i, group in enumerate(optimizer.param_groups) for p in group["params"]}
        missing = [row.name for row in self.plan.taken if id(row.parameter) not in groups]
        if missing:
            raise AttachError(
                where=missing[0],
                given=f"{type(optimizer).__name__} without {len(missing)} of the {len(self.plan.taken)} taken weights",
                wrong="weights that it does not hold would never learn",
                fix="give it all the model's parameters (after sharding or moving the model), or leave these dense",
            )
        attached = _Attachment(optimizer, total_steps)
        for row in self.plan.taken:
            assert row.parameter is not None and row.grouping is not None
            weight = local(row.parameter)
            state = self.method.init(row.name, weight, row.grouping)
            quiet = Quiet(row.parameter, optimizer)
            taken = _Taken(row.name, row.parameter, row.grouping, groups[id(row.parameter)], state, quiet)
            self._taken.append(taken)
            if self.method.masks_weights and not self.method.keeps_dense:
                attached.hooks.append(row.parameter.register_post_accumulate_grad_hook(_gradient_hook(taken)))
        attached.hooks.append(optimizer.register_step_pre_hook(self._before_step))
        attached.hooks.append(optimizer.register_step_post_hook(self._after_step))
        self._attached = attached
        self._measure(self._taken)
        self.method.use(self._batch(self._written()))
        return self

    def _check_attach(self, optimizer: Optimizer, total_steps: int) -> None:
        wrong = fix = ""
        if self._attached:
            wrong, fix = "this sparsifier is attached already", "make a new one, or detach() first"
        elif isinstance(optimizer, torch.optim.LBFGS):
            wrong, fix = "it evaluates its closure several times a step", "use an optimizer with one gradient a step"
        elif not self.plan.taken:
            wrong, fix = "the plan takes no weight", "print(sparsifier.plan) for the reasons, and change the rules"
        if wrong:
            raise AttachError(where="attach", given=type(optimizer).__name__, wrong=wrong, fix=fix)
        if total_steps < 1:
            raise AttachError(
                where="attach",
                given=f"total_steps={total_steps}",
                wrong="progress is measured in optimizer steps, of which there must be at least one",
                fix="give epochs * batches // accumulation",
            )

    def detach(self) -> None:
        """Take all hooks off and free the state. The weights stay as they are."""
        if self._attached:
            for hook in self._attached.hooks:
                hook.remove()
        self._attached, self._taken = None, []

    # Around optimizer.step

    @torch.no_grad()
    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is None:
            self._learn(optimizer)
            return None
        # The optimizer calls the closure first and then steps, so learning belongs right behind the closure.
        then = self._behind(closure, optimizer)
        return ((args[0], then, *args[2:]), kwargs) if len(args) > 1 else (args, kwargs | {"closure": then})

    def _behind(self, closure: Callable[[], Any], optimizer: Optimizer) -> Callable[[], Any]:
        def run() -> Any:
            loss = closure()
            with torch.no_grad():
                self._learn(optimizer)
            return loss

        return run

    def _learn(self, optimizer: Optimizer) -> None:
        assert self._attached is not None
        self._attached.skip = _unscale(optimizer)
        if self._attached.skip or not self.method.masks_weights:
            return
        for lr_group in {taken.lr_group for taken in self._taken}:
            moved = [t for t in self._taken if t.lr_group == lr_group and t.parameter.grad is not None]
            if moved:
                self.method.learn(self._batch(moved, grads=True), float(optimizer.param_groups[lr_group]["lr"]))
        for taken in self._written():
            if self.method.keeps_dense:
                local(taken.parameter).copy_(taken.state["dense"])
            else:
                taken.quiet.before_step()

    @torch.no_grad()
    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        assert self._attached is not None
        if self._attached.skip:
            return
        self._attached.step += 1
        if self.method.keeps_dense:
            for taken in self._taken:
                taken.state["dense"].copy_(local(taken.parameter))
        moved = [taken for taken in self._taken if self._advance(taken)]
        self._measure(moved)
        written = self._written()
        self.method.use(self._batch([t for t in written if self.method.keeps_dense or t.quiet.needs_clearing()]))
        for taken in written:
            if not self.method.keeps_dense:
                taken.quiet.after_step(taken.state["keep"])

    def _advance(self, taken: _Taken) -> bool:
        value = self.method.value(taken.grouping.pattern, self.progress)
        if value == taken.value:
            return False
        taken.value = value
        moved = self.method.advance(taken.name, local(taken.parameter), taken.state, taken.grouping, value)
        self.advances += moved
        return moved

    def _written(self) -> list[_Taken]:
        """The weights that the method writes into: nothing is owed to a mask that keeps everything."""
        if not self.method.masks_weights:
            return []
        return [taken for taken in self._taken if taken.density < 1.0 or self.method.keeps_dense]

    def _measure(self, moved: list[_Taken]) -> None:
        for taken in moved:
            taken.density = _density(self._mask(taken))
            taken.quiet.disturb()

    def _batch(self, some: list[_Taken], grads: bool = False) -> Batch:
        return Batch(
            names=[taken.name for taken in some],
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
        if self.method.masks_weights:
            own = {row.name: row.parameter for row in self.plan.taken}
            weights = own if model is None else targets.by_name(model, list(own))
            if model is not None:
                final = self.masks()  # none once this sparsifier is final itself: the model's own zeros tell then
                for name, weight in weights.items():
                    masks.clear_(local(weight), masks.bits(final.get(name, local(own[name]) != 0)))
            verify({row.name: (local(weights[row.name]), row.grouping) for row in self.plan.taken}, self.progress)
        if model is None:
            self.detach()

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
                taken.name: {"pattern": str(taken.grouping.pattern), "value": taken.value, "state": dict(taken.state)}
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
        states.check_same(saved, self.state_dict())
        self._attached.step, self.advances = int(saved["step"]), int(saved["advances"])
        for taken in self._taken:
            entry = saved["weights"][taken.name]
            taken.value = entry["value"]
            taken.state.clear()
            taken.state.update(states.placed(entry["state"], local(taken.parameter)))
        self._measure(self._taken)
        self.method.use(self._batch(self._written()))


def local(tensor: Tensor) -> Tensor:
    """The tensor itself, without autograd, or this rank's shard of a DTensor; shares memory."""
    tensor = tensor.detach()
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def _density(mask: Tensor) -> float:
    return float(mask.sum()) / mask.numel() if mask.numel() else 1.0


def _gradient_hook(taken: _Taken) -> Callable[[Tensor], None]:
    """Clears the gradient of removed weights as soon as it is there, before clipping, logging or the optimizer."""

    def clear(parameter: Tensor) -> None:
        if taken.density < 1.0 and parameter.grad is not None:
            masks.clear_(local(parameter.grad), taken.state["keep"])
            taken.quiet.gradient_cleared()

    return clear


def _unscale(optimizer: Optimizer) -> bool:
    """What GradScaler leaves to fused optimizers, done before learning. Returns whether the step will be skipped."""
    found, scale = getattr(optimizer, "found_inf", None), getattr(optimizer, "grad_scale", None)
    if found is not None and bool(found):
        return True
    if scale is not None:
        grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        torch._foreach_mul_(grads, float(scale) ** -1)
        optimizer.grad_scale = None  # type: ignore[attr-defined]
    return False
