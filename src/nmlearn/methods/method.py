"""The contract of a method: what a sparsifier asks of a published algorithm.

A method is a frozen dataclass of its settings; what it learns lives in one state per weight, a dict of tensors. What it
``holds`` says where the user's optimizer learns:

    "weight"   in the weight that the network computes with; what is pruned is cleared there, and stays pruned
    "shadow"   in a dense weight behind the one in use, ``state["dense"]``; pruned weights may come back
    "frozen"   nowhere: the dense weight behind stays as it is, and only the state learns
    "nothing"  as without a sparsifier: the plan only says which weights a comparison is about

The sparsifier drives a method around ``optimizer.step``:

    attach            state = init(w)
    before the step   learn(weights, at), every step, the weights of one parameter group at once; then the tensors of
                      the state that are ``learned`` take a step of their own torch optimizer
    after the step    advance(w, setting), only when setting(pattern, progress) has changed
                      used(w, at), every step: what the network computes with ("shadow" and "frozen")
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn, optim

from nmlearn.errors import settle
from nmlearn.maths import masks
from nmlearn.maths.groups import Grouping
from nmlearn.maths.inputs import Inputs
from nmlearn.maths.pattern import Pattern
from nmlearn.methods.options import PREFIX
from nmlearn.native.training import ScorePass, score_step_

State = dict[str, Tensor]
Setting = int | float | tuple[float, ...]
Needs = Literal["nothing", "sums", "gram"]
DENSE = "dense"  # the key of the dense weight behind the one in use
GRAM = "gram"  # the key of the running Gram matrix [G, K, K] of a weight's inputs


@dataclass(frozen=True)
class At:
    """A moment of training.

    Attributes:
        step: optimizer steps done.
        progress: steps done over all steps, in [0, 1].
        lr: the learning rate of the weights at hand, where they learn; NaN where their optimizer has none.
        score_pass: the compiled pass over scores to use; it may take the optimizer's own step along.
    """

    step: int = 0
    progress: float = 0.0
    lr: float = 0.0
    score_pass: ScorePass = score_step_


@dataclass(frozen=True)
class Weight:
    """One weight as a method sees it. Tensors are this rank's shards where the weight is sharded.

    Attributes:
        name: its qualified name.
        grouping: how it is cut into groups.
        tensor: what learns: the dense weight for "shadow" and "frozen", else the weight in use; float.
        in_use: what the network computed with; ``tensor`` itself where the method holds that.
        state: what ``init`` made; written in place.
        setting: what the schedule has come to.
        grad: the gradient of the weight *in use*, of its shape; None where there is none to see.
        shape: of the whole weight.
        shard: cuts this rank's part out of a whole tensor whose leading dimensions are those of the weight.
        inputs: what calibration saw of its inputs; None without calibration.
    """

    name: str
    grouping: Grouping
    tensor: Tensor
    in_use: Tensor
    state: State = field(default_factory=dict)
    setting: Setting | None = None
    grad: Tensor | None = None
    shape: tuple[int, ...] = ()
    shard: Callable[[Tensor], Tensor] = lambda whole: whole
    inputs: Inputs | None = None

    @property
    def pattern(self) -> Pattern:
        """The weight's own pattern, which a rule may have given."""
        return self.grouping.pattern


@dataclass(frozen=True)
class Method:
    """Base of all methods.

    Attributes:
        pattern: the pattern N:M of every weight that no rule gives another one; text is read by :class:`Pattern`.

    Raises:
        PatternError: not a pattern.
        ConfigError: a setting that its annotation does not allow: :func:`nmlearn.errors.settle`.
    """

    pattern: Pattern | str

    name: ClassVar[str]
    """The registered name, as the command line spells it."""
    holds: ClassVar[Literal["weight", "shadow", "frozen", "nothing"]] = "weight"
    """Where the user's optimizer learns; see the module."""
    dense_gradient: ClassVar[bool] = False
    """Whether pruned weights need their gradient, so that training never gets cheaper than the weight gradient."""
    other_backward: ClassVar[bool] = False
    """Whether the input gradient is computed with :meth:`used_back` in place of the weight in use."""
    own_step: ClassVar[bool] = False
    """Whether :meth:`learn` steps dense weights itself, since it changes what their optimizer would remember; "shadow".
    The user's optimizer then passes them by."""
    whole: ClassVar[bool] = False
    """Whether it has to see whole weights, so that sharded ones (FSDP2, tensor parallel) are refused."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "pattern", Pattern(self.pattern))
        settle(self, PREFIX)

    @property
    def needs(self) -> Needs:
        """What calibration must have seen of each weight's inputs (:class:`nmlearn.maths.inputs.Inputs`)."""
        return "nothing"

    @property
    def begins_equal(self) -> bool:
        """Whether all weights are worth the same to it at the start, as suits training from scratch."""
        return False

    @property
    def follows_inputs(self) -> bool:
        """Whether ``state["gram"]`` has to be the running Gram matrix of a weight's inputs, until it is dropped."""
        return False

    # The schedule

    def setting(self, pattern: Pattern, progress: float) -> Setting:
        """What the schedule asks of a weight of this pattern at this progress in [0, 1]."""
        return 0

    def advance(self, w: Weight, setting: Setting) -> bool:
        """Follow the schedule to this setting, after the step. Returns whether the mask may have changed."""
        return False

    def ended(self, pattern: Pattern, setting: Setting | None) -> bool:
        """Whether the schedule has come to its end at this setting, so that the mask alone is left of the state."""
        return False

    def settled(self, pattern: Pattern, setting: Setting | None) -> bool:
        """Whether the weights in use have their pattern at this setting, and at all that follow."""
        return setting == self.setting(pattern, 1.0)

    def all_settled(self, patterns: Iterable[Pattern], progress: float) -> bool:
        """Whether weights of all these patterns have them at this progress in [0, 1]."""
        return all(self.settled(pattern, self.setting(pattern, progress)) for pattern in patterns)

    def at_once(self, patterns: Iterable[Pattern]) -> bool:
        """Whether it gives weights of all these patterns their zeros at once, and not while a model trains."""
        return self.holds == "weight" and self.all_settled(patterns, 0.0)

    # Learning

    def init(self, w: Weight) -> State:
        """The state of one weight at the start; tensors on its device, per-weight ones in its memory layout.

        A method that holds "shadow" or "frozen" gets its ``state["dense"]`` from the sparsifier.
        """
        return {masks.KEEP: masks.full_bits(w.tensor)} if self.holds == "weight" else {}

    def learn(self, weights: Sequence[Weight], at: At) -> None:
        """Between backward and step: update the state, rewrite gradients in place."""

    def learned(self, state: State) -> tuple[str, ...]:
        """The tensors of a state that a torch optimizer steps; their gradient is that of :meth:`relaxed`."""
        return ()

    @property
    def needs_rate(self) -> bool:
        """Whether it learns by the learning rate of the weights, so that their optimizer has to have one."""
        return False

    def optimizer(self, learned: list[nn.Parameter], lr: float) -> optim.Optimizer:
        """The optimizer of what is learned; its state is saved with the weight's."""
        raise NotImplementedError(f"{type(self).__name__} says that a state is learned, and by no optimizer")

    def learning_rate(self, at: At) -> float:
        """The learning rate of what is learned: the weights' own."""
        return at.lr

    def relaxed(self, w: Weight, at: At) -> Tensor:
        """What :meth:`used` is differentiated through with respect to the learned tensors: itself, or a
        straight-through form of it."""
        return self.used(w, at)

    # What the network computes with

    def used(self, w: Weight, at: At) -> Tensor:
        """What the network computes with, of the weight's shape; for "shadow" and "frozen".

        A pure function: it is called again after a load or to see what others wrote, and must give the same values.
        Noise is drawn from ``at.step`` and the name (:mod:`nmlearn.maths.noise`).
        """
        raise NotImplementedError(f"{type(self).__name__} holds {self.holds!r}, so it has to say what is used")

    def used_back(self, w: Weight, at: At) -> Tensor:
        """What the input gradient is computed with, where ``other_backward``. Pure, as :meth:`used`."""
        return self.used(w, at)

    def impossible(self, w: Weight) -> str:
        """What a loaded state holds that no training comes to, for an error; empty where there is nothing.

        Args:
            w: with the loaded ``state`` and ``setting``; types, shapes and that numbers are finite have been checked.
        """
        setting = self.setting(w.pattern, 0.0) if w.setting is None else w.setting
        if masks.KEEP not in w.state or not self.settled(w.pattern, setting):
            return ""
        return dataclasses.replace(w.grouping, pattern=self.final(w)).violation(masks.from_bits(w.state[masks.KEEP]))

    # What it has come to

    def mask(self, w: Weight) -> Tensor:
        """What would be kept if training stopped now: bool, of the weight's shape."""
        return masks.from_bits(w.state[masks.KEEP])

    def final(self, w: Weight) -> Pattern:
        """The pattern of the weight if training stopped now, for methods that choose it."""
        return w.pattern

    # What is told of it

    def eliminates(self, pattern: Pattern) -> str:
        """How a weight of this pattern loses its candidates, for the plan; empty when there is nothing to say."""
        return ""

    def survivors(self, w: Weight) -> int | None:
        """How many combinations a group still chooses from, or None where that means nothing."""
        return None

    def describe(self) -> dict[str, Any]:
        """The settings as text and numbers: what a state must agree with to be loaded."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {key: _plain(value) for key, value in fields.items()}


def _plain(value: object) -> Any:
    if isinstance(value, int | float | str | None):
        return value
    if isinstance(value, tuple):
        return list(value)
    return str(value) if isinstance(value, Pattern) else "given"


def wrong_counts(w: Weight, count: int) -> str:
    """In how many groups the mask of a state keeps another number of weights, for an error; empty where in none."""
    kept = (w.grouping.view(w.state[masks.KEEP]) != 0).sum(-1)
    wrong = int((kept != count).sum())
    return f"{wrong:,} of {kept.numel():,} groups do not keep {count} weights, as all have to here" if wrong else ""


def grads(weights: Sequence[Weight]) -> list[Tensor]:
    """The gradients of weights that all have one, as those that ``learn`` is given."""
    return [w.grad for w in weights if w.grad is not None]


def decay_pruned_(weights: Sequence[Weight], decay: float) -> None:
    """Add ``decay (1 - m) W`` to the gradients, for methods whose weight in use is ``m W``; no mask is needed.

    Zhou et al., SR-STE, arXiv 2102.04010, equation 9.
    """
    torch._foreach_add_(grads(weights), [w.tensor for w in weights], alpha=decay)
    torch._foreach_sub_(grads(weights), [w.in_use for w in weights], alpha=decay)


def keep_top_(w: Weight, scores_w: Tensor, count: int) -> None:
    """Keep the ``count`` best-scored weights of every group among those kept so far; what is pruned stays pruned.

    Args:
        scores_w: nonnegative scores, of the weight's shape. What is not finite ranks last.
        count: how many a group keeps.
    """
    keep_gm = w.grouping.view(w.state[masks.KEEP])
    scores = masks.finite_first(scores_w).masked_fill(w.state[masks.KEEP] == 0, -2.0)
    chosen = masks.top(w.grouping.view(scores), count) & (keep_gm != 0)
    keep_gm.copy_(masks.bits(chosen))


def top_magnitudes(w: Weight) -> Tensor:
    """The N largest magnitudes of every group of what learns: bool, of the weight's shape."""
    chosen_gm = masks.top(masks.finite_first(w.grouping.view(w.tensor).abs()), w.pattern.n)
    return w.grouping.unview(chosen_gm)
