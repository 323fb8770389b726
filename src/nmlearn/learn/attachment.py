"""A sparsifier that is attached: the states of its weights, and what happens around the steps of their optimizers.

The optimizers' step hooks hold it, so that it acts as long as they live. It holds neither them nor the sparsifier.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from nmlearn.learn import compact, ending, following, optimizers, refusals, states, stepping, wrapping
from nmlearn.learn.holding import Holding, hold
from nmlearn.learn.learned import Learned
from nmlearn.learn.living import Bond
from nmlearn.learn.notices import Notices
from nmlearn.learn.other_backward import OtherBackward
from nmlearn.learn.rewriting import Watch
from nmlearn.learn.weight import SparseWeight
from nmlearn.maths import masks
from nmlearn.methods.method import DENSE, At, Method
from nmlearn.model.plan import Plan, PlanRow
from nmlearn.model.shards import like_weight, local, placed, shard


@dataclass
class Part:
    """The weights that one optimizer steps.

    Attributes:
        steps: done since attach; those that a GradScaler skipped do not count.
        skip: whether the step that is under way is none.
    """

    weights: list[SparseWeight]
    holding: Holding
    steps: int = 0
    skip: bool = False


class Attachment:
    """What a sparsifier has from attach to its end.

    Args:
        model, plan, method: of the sparsifier.
        several: the optimizers in their layers, each with the names of the sparse weights that it steps.
        total_steps: optimizer steps of the whole training.
        late: an optimizer may come with steps that this has not seen.

    Attributes:
        weights: in the plan's order.
        advances: how many masks have moved along their schedule so far.
        unresumed: why the next step is refused; empty where it is not.
    """

    def __init__(
        self,
        model: nn.Module,
        plan: Plan,
        method: Method,
        several: Sequence[tuple[list[Any], set[str]]],
        total_steps: int,
        late: bool = False,
    ) -> None:
        self.model, self.plan, self.method, self.total_steps, self.late = model, plan, method, total_steps, late
        self.advances, self.unresumed = 0, ""
        self.notices = Notices(plan, method)
        self.weights = [_start(row, method) for row in plan.sparse]
        parameters = [w.parameter for w in self.weights]
        self.learned = Learned(method)
        self.learned.bind(self.weights)
        self.backward = OtherBackward(model, method, self.weights, self.at) if method.other_backward else None
        hooks = self.backward.hooks() if self.backward else []
        hooks += wrapping.hooks(self, model, parameters)
        hooks += following.hooks(model, plan.sparse, self.weights) if method.follows_inputs else []
        self.parts: list[Part] = []
        for layers, names in several:
            hooks += self._around(layers, [w for w in self.weights if w.name in names])
        for w in self.weights:
            w.shapes = {key: tuple(t.shape) for key, t in placed(w.state, w.parameter, w.grouping).items()}
        self.bond = Bond(self, [layers[-1] for layers, _ in several], map(id, parameters), hooks)

    def _around(self, layers: list[Any], weights: list[SparseWeight]) -> list[Any]:
        """Hooks around the steps of one of the optimizers."""
        optimizer = layers[-1]
        groups = {id(p): i for i, group in enumerate(optimizer.param_groups) for p in group["params"]}
        for w in weights:
            w.lr_group = groups[id(w.parameter)]

        def before(stepping: Optimizer, args: Any, kwargs: Any) -> Any:
            return self._before_step(part, stepping, args, kwargs)

        def after(stepping: Optimizer, args: Any, kwargs: Any) -> None:
            self._after_step(part)

        # What a step does here changes with the schedule: compiled, it would be compiled again and again.
        around = stepping.once(before, after)
        part = Part(weights, hold(self.method, weights, layers, around))
        self.parts.append(part)
        hung = [optimizer.register_step_pre_hook(around[0]), optimizer.register_step_post_hook(around[1])]
        return [*hung, *part.holding.hooks()]

    # Where it stands

    @property
    def step(self) -> int:
        """Steps that all of the optimizers have done."""
        return min(part.steps for part in self.parts)

    @property
    def progress(self) -> float:
        """The share of the training that is done, clamped to 1."""
        return min(1.0, self.step / self.total_steps)

    @property
    def ended(self) -> bool:
        """Whether no mask changes any more."""
        return ending.ended(self.method, self.weights)

    @property
    def watch(self) -> Watch:
        """On who else writes weights: of the optimizers, the one with most to tell."""
        watches = [part.holding.watch for part in self.parts]
        return max(watches, key=lambda watch: (watch.came_back, not watch.trusted))

    def at(self) -> At:
        """This moment."""
        return At(self.step, self.progress)

    def mask(self, w: SparseWeight) -> Tensor:
        """What is kept of a weight now: bool, of its shape."""
        return self.method.mask(w.seen())

    # Around the steps

    def begin(self) -> None:
        """Write what the network shall compute with before the first step."""
        self._measure(self.weights)
        self._write()

    def _before_step(self, part: Part, optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
        refusals.check_capture(part.weights[0].parameter)
        if self.unresumed:
            refusals.refuse_unresumed(self.unresumed)
        part.skip = optimizers.only_makes_state(optimizer, kwargs)
        if part.skip:
            return None
        return optimizers.before_stepping(args, kwargs, lambda: self._before(part, optimizer))

    @torch.no_grad()
    def _before(self, part: Part, optimizer: Optimizer) -> None:
        part.skip = optimizers.unscale(optimizer)
        self.notices.scaler(part.skip)
        if part.skip or self.method.holds == "nothing":
            return
        self._check_gradients(part)
        if self.backward:
            self.backward.settle(part.weights)
        part.holding.before(lambda: self._learn(part, optimizer))

    def _learn(self, part: Part, optimizer: Optimizer) -> None:
        for index, group in enumerate(optimizer.param_groups):
            some = [w for w in part.weights if w.lr_group == index and w.parameter.grad is not None]
            if some:
                seen, lr = [w.seen() for w in some], optimizers.rate(group, self.method)
                at = replace(self.at(), lr=lr, score_pass=part.holding.score_pass(group, some, seen))
                self.method.learn(seen, at)
                self.learned.step(some, at)

    def _check_gradients(self, part: Part) -> None:
        """Find out why weights have no gradient, and have each placed as its weight is."""
        without = {w.name for w in part.weights if w.parameter.grad is None}
        refusals.check_replaced(self.plan, self.model, without, whole=len(without) == len(part.weights))
        self.notices.with_gradient(w.name for w in part.weights if w.name not in without)
        for parameter in [w.parameter for w in part.weights]:
            if parameter.grad is not None and (placed := like_weight(parameter.grad, parameter)) is not parameter.grad:
                parameter.grad = placed

    @torch.no_grad()
    def _after_step(self, part: Part) -> None:
        if not part.skip:
            part.holding.after()
            self._passed([part])

    @torch.no_grad()
    def skip_step(self) -> None:
        """A step without the optimizers: nothing is learned, the schedule moves."""
        for part in self.parts:
            part.holding.skip()
        self._passed(self.parts)

    def _passed(self, parts: Sequence[Part]) -> None:
        """A step of these has passed: follow the schedule, and write what the network shall compute with.

        The schedule moves when all optimizers have stepped; until then those that have leave the masks as they are.
        """
        before = self.step
        for part in parts:
            part.steps += 1
        if self.step == before:
            for part in parts:
                part.holding.write(self.at())
            return
        ending.warn_beyond(self.step, self.total_steps)
        self.follow()

    def follow(self) -> None:
        """Follow the schedule to this moment."""
        moved = [w for w in self.weights if self._advance(w)]
        if moved:
            self.advances += len(moved)
            self.learned.bind(self.weights)
            self._measure(moved)
            self.notices.unfrozen()
        self._write()

    def _advance(self, w: SparseWeight) -> bool:
        setting = self.method.setting(w.grouping.pattern, self.progress)
        if setting == w.setting:
            return False
        moved = self.method.advance(w.seen(), setting)
        w.setting = setting
        return moved

    def _measure(self, moved: list[SparseWeight]) -> None:
        for w in moved:
            w.density = masks.density(self.mask(w))
        names = {w.name for w in moved}
        for part in self.parts:
            part.holding.moved([w for w in part.weights if w.name in names])

    def _write(self) -> None:
        for part in self.parts:
            part.holding.write(self.at())

    def complete(self) -> bool:
        """End the schedule at this step, where there is something to choose by. Returns whether it did."""
        if not ending.can_complete(self.method, self.weights, self.step):
            return False
        self.total_steps = max(1, self.step)
        for part in self.parts:
            part.holding.skip()
        self.follow()
        return True

    # Saving and resuming

    def missed(self, optimizer: Optimizer) -> None:
        """An optimizer was loaded without this state: where it has stepped, the next step is refused, unless the state
        comes in another way."""
        if self.step or self.late:
            return
        stepped = optimizers.has_stepped(optimizer, [w.parameter for w in self.weights])
        said = f"{type(optimizer).__name__}, loaded with the state of earlier steps and none of a sparsifier"
        self.unresumed = said if stepped else ""

    def state_dict(self) -> dict[str, Any]:
        """See :meth:`nmlearn.Sparsifier.state_dict`."""
        saved = states.saved(self.method, self.total_steps, self.step, self.advances, self.weights)
        steps = [part.steps for part in self.parts]
        return saved if len({*steps}) == 1 else saved | {"steps": steps}  # between two optimizers

    def check(self, saved: Mapping[str, Any]) -> None:
        """Refuse a state that does not belong here.

        Raises:
            StateError: the first difference is named.
        """
        self._checked(saved)

    def _checked(self, saved: Mapping[str, Any]) -> Mapping[str, Any]:
        """The state, unpacked."""
        plain = compact.unpacked(saved)
        states.check_same(plain, self.state_dict(), self.weights, self.method)
        return plain

    @torch.no_grad()
    def load(self, saved: Mapping[str, Any]) -> None:
        """Go on from a saved state.

        Raises:
            StateError: it does not belong here; nothing has changed.
        """
        saved = self._checked(saved)
        steps = saved.get("steps", [])
        for number, part in enumerate(self.parts):
            part.steps = int(steps[number] if len(steps) == len(self.parts) else saved["step"])
        self.advances, self.unresumed = int(saved["advances"]), ""
        self.notices.resumed()
        for w in self.weights:
            entry = saved["weights"][w.name]
            w.setting = entry["value"]
            needed = states.needed(w.shapes, self.method.ended(w.grouping.pattern, w.setting))
            shards = {key: shard(entry["state"][key], w.parameter) for key in needed}
            w.state.clear()
            w.state.update(states.copied(shards, local(w.parameter)))
        self.learned.bind(self.weights)
        self.begin()


def _start(row: PlanRow, method: Method) -> SparseWeight:
    state = {DENSE: local(row.parameter).clone()} if method.holds in ("shadow", "frozen") else {}
    w = SparseWeight(row.name, row.parameter, row.grouping, state)
    w.state |= method.init(w.seen())
    return w
