"""The sparsifier: puts a method on a model and lives next to its optimizer.

The model is never changed: no wrapped layers, no parametrization, no extra parameters. Hooks on ``optimizer.step``
learn before it and write into the weights after it, so that at every other moment the model is an ordinary one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, SupportsIndex

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from nmlearn.errors import StateError
from nmlearn.learn import applying, calibration, ending, optimizers, refusals, states, travel, wrapping
from nmlearn.learn.ending import Summary
from nmlearn.learn.holding import Holding, hold
from nmlearn.learn.learned import Learned
from nmlearn.learn.living import Bond, held_elsewhere
from nmlearn.learn.notices import Notices, warn_of_few_steps
from nmlearn.learn.other_backward import OtherBackward
from nmlearn.learn.weight import SparseWeight, WeightStatus
from nmlearn.maths import masks
from nmlearn.methods.method import DENSE, At, Method
from nmlearn.model import averages
from nmlearn.model import plan as planning
from nmlearn.model.plan import Plan, PlanRow, Rule
from nmlearn.model.shards import is_sharded, like_weight, local, placed, shard


@dataclass
class _Attachment:
    total_steps: int
    holding: Holding
    learned: Learned
    backward: OtherBackward | None
    bond: Bond
    notices: Notices
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
        plan: which weights become sparse, and why the rest stays dense; print it.
        advances: how many masks have moved along their schedule so far.

    Raises:
        ConfigError: a method that is none: a pattern, or a method's class.
        PlanError, PatternError: rules that cannot be followed.
        AttachError: a model whose weights cannot be seen (FSDP1).
    """

    def __init__(self, model: nn.Module, method: Method, rules: Mapping[str, Rule] | None = None) -> None:
        refusals.check_method(method)
        refusals.check_model(model)
        self.model = model
        self.method = method
        self.plan: Plan = planning.plan(model, method, rules)
        self.advances = 0
        self._attached: _Attachment | None = None
        self._finalized = False
        self._weights: list[SparseWeight] = []

    def __repr__(self) -> str:
        ended = "finalized" if self._finalized else "not attached"
        stands = f"step {self.step} of {self.total_steps}" if self._attached else ended
        return f"Sparsifier({self.method.name} {self.method.pattern}, {len(self.plan.sparse)} sparse weights, {stands})"

    def __reduce_ex__(self, protocol: SupportsIndex) -> str | tuple[Any, ...]:
        if self._attached is None:
            return super().__reduce_ex__(protocol)
        refusals.refuse_copy()

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
        """step / total_steps, clamped to 1; it stays 1 after finalize."""
        if self._finalized:
            return 1.0
        return min(1.0, self.step / self.total_steps) if self.total_steps else 0.0

    @property
    def ended(self) -> bool:
        """Whether the last removal is made, so that each weight has its pattern: the best model is one of those from
        now on. For methods with a new mask at every step, from the first step on."""
        return self._finalized or (self._attached is not None and ending.ended(self.method, self._weights))

    def status(self) -> list[WeightStatus]:
        """Where each sparse weight stands. Reads the masks of methods that move them on every step."""
        return [w.status(self.method) for w in self._weights]

    def masks(self) -> dict[str, Tensor]:
        """What is kept now: qualified name to a bool tensor of the (local) weight's shape."""
        return {w.name: self._mask(w) for w in self._weights}

    def state_bytes(self) -> int:
        """Bytes held next to the model now; 0 after finalize."""
        return sum(t.numel() * t.element_size() for w in self._weights for t in w.state.values())

    def _mask(self, w: SparseWeight) -> Tensor:
        return self.method.mask(w.seen())

    # Attaching

    @torch.no_grad()
    def attach(self, optimizer: Optimizer, total_steps: int, *, travels: bool = True) -> Sparsifier:
        """From now on ``optimizer.step()`` learns, until the optimizer is gone, :meth:`detach` or :meth:`finalize`.

        Args:
            optimizer: any torch optimizer that holds every sparse weight.
            total_steps: how often it will step in the whole training; progress is steps done over this.
            travels: ``optimizer.state_dict()`` includes the state, and ``load_state_dict`` restores it, before attach
                or after; never of shards. False where the sparsifier's own state_dict is saved, as with DCP.

        Returns:
            The sparsifier itself; resumed, where the optimizer was loaded with a sparsifier's state.

        Raises:
            AttachError: attached already, total_steps no whole number of at least 1, an optimizer that misses a sparse
                weight, steps in backward or evaluates its closure several times a step, weights that another
                sparsifier holds, or whose shards cut groups.
            StateError: the optimizer was loaded with a state of another method, pattern, model or training length.
        """
        optimizers.check(optimizer, total_steps, self.method)
        optimizer, total_steps = optimizers.innermost(optimizer), optimizers.whole(total_steps)
        groups = {id(p): i for i, group in enumerate(optimizer.param_groups) for p in group["params"]}
        self._check_attach(optimizer)
        self._weights = [self._start(row, groups[id(row.parameter)]) for row in self.plan.sparse]
        # What a step does here changes with the schedule: compiled, it would be compiled again and again.
        before, after = around = torch.compiler.disable(self._before_step), torch.compiler.disable(self._after_step)
        holding = hold(self.method, self._weights, optimizer, around)
        learned = Learned(self.method)
        learned.bind(self._weights)
        backward = (
            OtherBackward(self.model, self.method, self._weights, self._at) if self.method.other_backward else None
        )
        hooks = [optimizer.register_step_pre_hook(before), optimizer.register_step_post_hook(after), *holding.hooks()]
        hooks += backward.hooks() if backward else []
        hooks += wrapping.hooks(self, self.model, [w.parameter for w in self._weights])
        for w in self._weights:
            w.shapes = {key: tuple(t.shape) for key, t in placed(w.state, w.parameter, w.grouping).items()}
        self._finalized = False
        travels = travels and not any(is_sharded(w.parameter) for w in self._weights)
        name = self._weights[0].name
        if travels:
            hooks += travel.hooks(optimizer, name, self.state_dict, self._check_state, self.load_state_dict)
        bond = Bond(self, optimizer, (id(w.parameter) for w in self._weights), hooks)
        self._attached = _Attachment(total_steps, holding, learned, backward, bond, Notices(self.plan, self.method))
        warn_of_few_steps(self.method, self.plan, total_steps)
        if not travels or (saved := travel.waiting(optimizer, name)) is None:
            self._measure(self._weights)
            holding.write(self._at())
            return self
        try:
            self.load_state_dict(saved)
        except StateError:
            self.detach()
            raise
        travel.take_out(optimizer, name)
        return self

    def _start(self, row: PlanRow, lr_group: int) -> SparseWeight:
        state = {DENSE: local(row.parameter).clone()} if self.method.holds in ("shadow", "frozen") else {}
        w = SparseWeight(row.name, row.parameter, row.grouping, lr_group, state, shapes={})
        w.state |= self.method.init(w.seen())
        return w

    def _at(self) -> At:
        return At(self.step, self.progress)

    def _check_attach(self, optimizer: Optimizer) -> None:
        if self._attached:
            refusals.refuse_second(optimizer)
        theirs = held_elsewhere({id(row.parameter) for row in self.plan.sparse})
        refusals.check_weights(self.plan, self.model, self.method, optimizer, theirs)

    def detach(self) -> None:
        """Take all hooks off and free the state. The weights stay as they are."""
        if self._attached:
            self._attached.bond.end()
        self._attached, self._weights = None, []

    def apply(self, batches: Iterable[Any] | None = None, *, memory: int = calibration.MEMORY) -> Summary:
        """Give each weight its pattern now, without an optimizer, and verify; :meth:`attach` then trains what is left.

        Args:
            batches: to calibrate with, where the method needs that; see :func:`nmlearn.learn.calibration.calibrate`.
                Block by block in order of call: each is fed what the sparse ones before it produce.
            memory: bytes that the sums of one stage, and pieces of inputs, may take together.

        Raises:
            ConfigError: a method that learns while training, no batches where it needs some, or too little memory.
            AttachError: weights that are sharded, replaced or held by a sparsifier, or a model in DDP.
            PlanError, DataError: weights whose inputs cannot be seen; inputs that are not finite.
        """
        return applying.apply(self, batches, memory)

    # Around optimizer.step

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
        assert self._attached is not None
        refusals.check_capture(self._weights[0].parameter)
        self._attached.skip = optimizers.only_makes_state(optimizer, kwargs)
        if self._attached.skip:
            return None
        return optimizers.before_stepping(args, kwargs, lambda: self._before(optimizer))

    @torch.no_grad()
    def _before(self, optimizer: Optimizer) -> None:
        assert self._attached is not None
        self._attached.skip = optimizers.unscale(optimizer)
        self._attached.notices.scaler(self._attached.skip)
        if self._attached.skip or self.method.holds == "nothing":
            return
        self._check_gradients()
        if self._attached.backward:
            self._attached.backward.settle()
        self._attached.holding.before(lambda: self._learn(optimizer))

    def _learn(self, optimizer: Optimizer) -> None:
        assert self._attached is not None
        holding, learned = self._attached.holding, self._attached.learned
        for index, group in enumerate(optimizer.param_groups):
            some = [w for w in self._weights if w.lr_group == index and w.parameter.grad is not None]
            if some:
                seen = [w.seen() for w in some]
                at = replace(self._at(), lr=float(group["lr"]), score_pass=holding.score_pass(group, some, seen))
                self.method.learn(seen, at)
                learned.step(some, at)

    def _check_gradients(self) -> None:
        """Find out why weights have no gradient, and have each placed as its weight is."""
        without = {w.name for w in self._weights if w.parameter.grad is None}
        refusals.check_replaced(self.plan, self.model, without)
        assert self._attached is not None
        self._attached.notices.without_gradient(without)
        for parameter in [w.parameter for w in self._weights]:
            if parameter.grad is not None and (placed := like_weight(parameter.grad, parameter)) is not parameter.grad:
                parameter.grad = placed

    @torch.no_grad()
    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        assert self._attached is not None
        if not self._attached.skip:
            self._attached.holding.after()
            self._count()

    @torch.no_grad()
    def skip_step(self) -> None:
        """In place of ``optimizer.step()`` where a loop leaves a step out: nothing is learned, the schedule moves."""
        if self._attached is not None:
            self._attached.holding.skip()
            self._count()

    def _count(self) -> None:
        """A step has passed: follow the schedule, and write what the network shall compute with."""
        assert self._attached is not None
        self._attached.step += 1
        ending.warn_beyond(self.step, self.total_steps)
        self._follow()

    def _follow(self) -> None:
        assert self._attached is not None
        moved = [w for w in self._weights if self._advance(w)]
        if moved:
            self.advances += len(moved)
            self._attached.learned.bind(self._weights)
            self._measure(moved)
            self._attached.notices.unfrozen()
        self._attached.holding.write(self._at())

    def _advance(self, w: SparseWeight) -> bool:
        setting = self.method.setting(w.grouping.pattern, self.progress)
        if setting == w.setting:
            return False
        moved = self.method.advance(w.seen(), setting)
        w.setting = setting
        return moved

    def _measure(self, moved: list[SparseWeight]) -> None:
        assert self._attached is not None
        for w in moved:
            w.density = masks.density(self._mask(w))
        self._attached.holding.moved(moved)

    # Ending, saving, resuming

    @torch.no_grad()
    def finalize(self, model: Any = None, *, complete: bool = False) -> Summary:
        """Verify every group of every sparse weight that the model has now, then detach and free the state.

        Steps count where the optimizer steps. A loop that will stop early, or a scaler that keeps the optimizer from
        stepping, shows only here: the error names the causes that fit, and nothing is lost.

        Args:
            model: an average (EMA, SWA) instead: a model or its wrapper, an object with ``module`` or
                ``shadow_params``, a state dict, or tensors in the order of ``model.parameters()``. Its weights are
                given the final masks in place and verified; a moving mask leaves averages denser than the pattern. The
                sparsifier itself stays as it is.
            complete: end the schedule at this step: what it has yet to remove is removed now, by what was learned so
                far, and values that others wrote where weights are pruned are cleared. With an average too.

        Returns:
            The verified weights, their density and sizes, and what was removed; two lines as text.

        Raises:
            ViolationError: a table of the weights that break their pattern, or one that the model no longer has;
                nothing is detached then.
            PlanError: the given model lacks a sparse weight, or has it in another shape.
        """
        rows = self.plan.sparse if self.method.holds != "nothing" else ()
        own = ending.weights_now(rows, self.model) if model is None or complete else {}
        given = own if model is None else averages.weights(model, self.model, [row.name for row in rows])
        given = {name: local(weight) for name, weight in given.items()}
        before = None if model is None and not complete else ending.kept(given)  # nothing is written then
        if complete:
            self._complete(own)
        if model is None:
            self._verify(own)
            if self._attached:
                self._attached.notices.at_the_end(self.step)
            self.detach()
            self._finalized = True
        else:
            # Without a state this sparsifier is final itself: the model's own zeros are the masks then.
            final = self.masks() or {row.name: local(row.parameter) != 0 for row in rows}
            self._verify({row.name: final[row.name] for row in rows})
            ending.clear(given, final)
        return ending.summary(rows, given, before)

    def _complete(self, own: dict[str, Tensor]) -> None:
        """End the schedule at this step; what stands in place of the weights that were learned gets their masks."""
        if self._attached and ending.can_complete(self.method, self._weights, self.step):
            self._attached.total_steps = max(1, self.step)
            self._attached.holding.skip()
            self._follow()
            ending.clear(own, self.masks())

    def _verify(self, tensors: dict[str, Tensor]) -> None:
        by = (self._attached.bond, self._attached.notices) if self._attached else None
        ending.check(self, self._weights, by, tensors)

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
                w.name: {
                    "pattern": str(w.grouping.pattern),
                    "value": w.setting,
                    "state": placed(w.state, w.parameter, w.grouping),
                }
                for w in self._weights
            },
        }

    @torch.no_grad()
    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from a saved state, bit for bit; call after attach, and load model and optimizer too.

        Raises:
            StateError: not attached, or a state of another method, pattern, model or training length: the first
                difference is named.
        """
        self._check_state(saved)
        assert self._attached is not None
        self._attached.step, self.advances = int(saved["step"]), int(saved["advances"])
        self._attached.notices.resumed()
        for w in self._weights:
            entry = saved["weights"][w.name]
            w.setting = entry["value"]
            needed = states.needed(w.shapes, self.method.ended(w.grouping.pattern, w.setting))
            shards = {key: shard(entry["state"][key], w.parameter) for key in needed}
            w.state.clear()
            w.state.update(states.copied(shards, local(w.parameter)))
        self._attached.learned.bind(self._weights)
        self._measure(self._weights)
        self._attached.holding.write(self._at())

    def _check_state(self, saved: Mapping[str, Any]) -> None:
        if self._attached is None:
            states.refuse_unattached()
        states.check_same(saved, self.state_dict(), {w.name: w.shapes for w in self._weights}, self.method.ended)
