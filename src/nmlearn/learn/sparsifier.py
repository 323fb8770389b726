"""The sparsifier: puts a method on a model and lives next to its optimizer.

The model is never changed: no wrapped layers, no parametrization, no extra parameters. Hooks on ``optimizer.step``
learn before it and write into the weights after it, so that at every other moment the model is an ordinary one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, SupportsIndex

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from nmlearn.errors import StateError
from nmlearn.learn import applying, calibration, ending, lengths, optimizers, refusals, states, travel
from nmlearn.learn.attachment import Attachment
from nmlearn.learn.compact import packed
from nmlearn.learn.ending import Summary
from nmlearn.learn.living import held_elsewhere
from nmlearn.learn.notices import warn_of_few_steps
from nmlearn.learn.weight import SparseWeight, WeightStatus
from nmlearn.methods.method import Method
from nmlearn.model import averages
from nmlearn.model import plan as planning
from nmlearn.model.finite import warn_of_not_finite
from nmlearn.model.names import parameters
from nmlearn.model.plan import Plan, Rule
from nmlearn.model.shards import is_sharded, local


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
        example: inputs of the model, to see on a run which its output layers are; see there too.

    Attributes:
        plan: which weights become sparse, and why the rest stays dense; print it.

    Raises:
        ConfigError: a method that is none: a pattern, or a method's class; an example that the model refuses.
        PlanError, PatternError: rules that cannot be followed.
        AttachError: a model whose weights cannot be seen (FSDP1).
    """

    def __init__(
        self, model: nn.Module, method: Method, rules: Mapping[str, Rule] | None = None, example: Any | None = None
    ) -> None:
        refusals.check_method(method)
        refusals.check_model(model)
        self.model = model
        self.method = method
        self.plan: Plan = planning.plan(model, method, rules, example)
        self._attached: Attachment | None = None
        self._advances = 0
        self._finalized = False

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
    def advances(self) -> int:
        """How many masks have moved along their schedule so far."""
        return self._attached.advances if self._attached else self._advances

    @property
    def total_steps(self) -> int:
        """The number of optimizer steps of the whole training, as given to attach; 0 before."""
        return self._attached.total_steps if self._attached else 0

    @property
    def progress(self) -> float:
        """step / total_steps, clamped to 1; it stays 1 after finalize."""
        if self._finalized:
            return 1.0
        return self._attached.progress if self._attached else 0.0

    @property
    def ended(self) -> bool:
        """Whether the last removal is made, so that each weight has its pattern: the best model is one of those from
        now on. For methods with a new mask at every step, from the first step on."""
        return self._finalized or (self._attached is not None and self._attached.ended)

    def status(self) -> list[WeightStatus]:
        """Where each sparse weight stands. Reads the masks of methods that move them on every step."""
        return [w.status(self.method) for w in self._weights]

    def masks(self) -> dict[str, Tensor]:
        """What is kept now: qualified name to a bool tensor of the (local) weight's shape."""
        return {w.name: self.method.mask(w.seen()) for w in self._weights}

    def state_bytes(self) -> int:
        """Bytes held next to the model now; 0 after finalize."""
        return sum(t.numel() * t.element_size() for w in self._weights for t in w.state.values())

    @property
    def _weights(self) -> list[SparseWeight]:
        return self._attached.weights if self._attached else []

    # Attaching

    @torch.no_grad()
    def attach(
        self,
        optimizer: Optimizer | Sequence[Optimizer],
        total_steps: object,
        *,
        travels: bool = True,
        resume: Literal["anew"] | None = None,
    ) -> Sparsifier:
        """From now on ``optimizer.step()`` learns, until the optimizer is gone, :meth:`detach` or :meth:`finalize`.

        Args:
            optimizer: any torch optimizer that holds every sparse weight; or several, such as ``[muon, adamw]``, each
                with its part of them: a step is done when all that hold some have stepped.
            total_steps: how often it will step in the whole training; progress is steps done over this. A number, or
                who knows it: a Trainer of Lightning or transformers, or a function without arguments.
            travels: ``optimizer.state_dict()`` (of the first) includes the state, and ``load_state_dict`` restores it,
                before attach or after; never of shards, nor where torch.distributed.checkpoint asks. False where the
                sparsifier's own state_dict is saved.
            resume: "anew" begins a schedule where the optimizer has stepped and no state is found, which is refused
                otherwise. A state that is found is always resumed.

        Returns:
            The sparsifier itself; resumed, where the optimizer was loaded with a sparsifier's state.

        Raises:
            AttachError: attached already, total_steps no whole number of at least 1, an optimizer that misses a sparse
                weight, has stepped without a sparsifier, steps in backward or evaluates its closure several times a
                step, weights that another sparsifier holds, or whose shards cut groups.
            StateError: the optimizer was loaded with a state of another method, pattern, plan or training length.
        """
        refusals.check_resume(resume)
        layers = [optimizers.check(one, total_steps, self.method) for one in optimizers.each(optimizer)]
        several, steps = [found[-1] for found in layers], lengths.steps(total_steps)
        self._check_attach(several)
        homes, names = optimizers.homes(layers, self.plan.sparse), [row.name for row in self.plan.sparse]
        first = homes[0][0][-1]
        travels = travels and not any(is_sharded(row.parameter) for row in self.plan.sparse)
        saved = travel.waiting(first, names) if travels else None
        if travels and saved is None and resume is None:
            self._check_unstepped(several)
        self._attached = attached = Attachment(self.model, self.plan, self.method, homes, steps, resume is not None)
        self._finalized = False
        if travels:
            attached.bond.hooks += travel.hooks(first, names, attached)
        warn_of_few_steps(self.method, self.plan, steps)
        if saved is None:
            attached.begin()
            return self
        try:
            attached.load(saved)
        except StateError:
            self.detach()
            raise
        travel.take_out(first, names)
        return self

    def _check_attach(self, several: list[Optimizer]) -> None:
        if self._attached:
            refusals.refuse_second(several)
        theirs = held_elsewhere({id(row.parameter) for row in self.plan.sparse})
        refusals.check_weights(self.plan, self.model, self.method, several, theirs)

    def _check_unstepped(self, several: list[Optimizer]) -> None:
        parameters = [row.parameter for row in self.plan.sparse]
        for optimizer in several:
            if optimizers.has_stepped(optimizer, parameters):
                refusals.refuse_unresumed(f"{type(optimizer).__name__}, which has stepped without a sparsifier")

    def detach(self) -> None:
        """Take all hooks off and free the state. The weights stay as they are."""
        if self._attached:
            self._attached.bond.end()
            self._advances = self._attached.advances
        self._attached = None

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

    def skip_step(self) -> None:
        """In place of ``optimizer.step()`` where a loop leaves a step out: nothing is learned, the schedule moves."""
        if self._attached is not None:
            self._attached.skip_step()

    # Ending, saving, resuming

    @torch.no_grad()
    def finalize(self, model: Any = None, *, complete: bool = False) -> Summary:
        """Verify every group of every sparse weight that the model has now, then detach and free the state.

        Steps count where the optimizer steps. A loop that will stop early, or a scaler that keeps the optimizer from
        stepping, shows only here: the error names the causes that fit, and nothing is lost. NaN and infinite values are
        no error: one warning lists the weights that have some.

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
        warn_of_not_finite(parameters(self.model) if model is None else given, stacklevel=4)
        return ending.summary(rows, given, before)

    def _complete(self, own: dict[str, Tensor]) -> None:
        """End the schedule at this step; what stands in place of the weights that were learned gets their masks."""
        if self._attached and self._attached.complete():
            ending.clear(own, self.masks())

    def _verify(self, tensors: dict[str, Tensor]) -> None:
        by = (on.bond, on.notices, on.watch) if (on := self._attached) else None
        ending.check(self, self._weights, by, tensors)

    def state_dict(self, *, compact: bool = False) -> dict[str, Any]:
        """All it needs to go on: tensors by the weights' qualified names, text and numbers.

        Args:
            compact: for files: masks as bits, eight to a byte. Otherwise each has its weight's shape and placement, as
                torch.distributed.checkpoint needs it.
        """
        if self._attached is None:
            return states.saved(self.method, 0, 0, self.advances, [])
        saved = self._attached.state_dict()
        return packed(saved) if compact else saved

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from a saved state of either form, bit for bit; call after attach, and load model and optimizer too.

        Raises:
            StateError: not attached, or a state of another method, pattern, model or training length: the first
                difference is named.
        """
        if self._attached is None:
            states.refuse_unattached()
        self._attached.load(saved)
