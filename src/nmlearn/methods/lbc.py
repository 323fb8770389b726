"""LBC, Learning Best Combination: the flagship.

Zhang et al., *Learning Best Combination for Efficient N:M Sparsity*, NeurIPS 2022, arXiv 2206.06662. Every group
chooses among its C(M, N) combinations; each has a score that receives the gradient sum_{j in k} g_j w_j; the
lowest-scored ones are removed step by step, for good. A weight is in use while one surviving combination holds it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn, optim

from nmlearn.errors import check_choice
from nmlearn.maths import elimination as eliminate
from nmlearn.maths import masks
from nmlearn.maths import scores as scoring
from nmlearn.maths.combinations import LARGEST_TABLE
from nmlearn.maths.inputs import from_rows, to_rows
from nmlearn.maths.obs import DAMPING, saliency
from nmlearn.maths.pattern import Pattern
from nmlearn.maths.reconstruction import refit_pcg
from nmlearn.maths.schedules import Falling
from nmlearn.methods.method import GRAM, At, Method, Setting, State, Weight, wrong_counts
from nmlearn.methods.options import PREFIX, check_not_negative, refuse

# Above this many combinations a group (8:16 has 12870) "auto" eliminates weights: the set of survivors would not fit.
MOST_COMBINATIONS = 200
Prior = Literal["equal", "magnitude"] | Mapping[str, Tensor] | Callable[[str, Tensor], Tensor]
Criterion = Literal["learned", "magnitude", "product", "fisher", "output"]
_AVERAGE = 0.1  # the share of the newest gradient in the averages of "product" and "fisher"
_REFIT_STEPS = 10  # of conjugate gradients at each removal


@dataclass(frozen=True)
class LBC(Method):
    """Learning Best Combination.

    Attributes:
        start, end, power: C survivors fall to 1 along :class:`nmlearn.maths.schedules.Falling`; the paper's ResNets
            have 0, 0.5, 3, DeiT has power 4.
        scores: "factored" keeps one score per weight, which is exact for SGD on scores; "explicit" one per combination,
            the paper to the letter.
        score_optimizer: "sgd", or "adamw" with explicit scores (the paper's DeiT setting). Its learning rate is the one
            of the weight's parameter group.
        momentum: of SGD on the scores.
        weight_decay: on the scores; decoupled for AdamW.
        elimination: "combination" as in the paper; "weight" removes weights, keeping the smallest number r of the
            best-scored with C(r, N) >= survivors; "auto" is "combination" up to 200 combinations a group.
        prior: "equal" scores at the start as in the paper; "magnitude" starts them at w^2 / 2, for pretrained models; a
            mapping from qualified names to saliencies of the weights' shapes; or a function (name, weight) -> saliency.
        criterion: what scores a weight when some have to go. "learned" is the paper. The others are not LBC but its
            schedule and its elimination with another score: "magnitude" w^2 / 2 of that moment; "product" a running
            mean of |g w| (first order, Molchanov et al. 2019, arXiv 1906.10771); "fisher" w^2 times a running mean of
            g^2 (the diagonal Fisher of Theis et al. 2018, arXiv 1801.05787); "output" what pruning it alone costs in
            the layer's outputs when the others make up for it, w^2 / [H^-1]_jj (optimal brain surgeon).
        compensation: "pcg" lets the survivors of a row take over what was removed, by least squares on the outputs of
            the layer at each removal (conjugate gradients, :func:`nmlearn.maths.reconstruction.refit_pcg`). "none" is
            the paper.

    "output" and "pcg" know the inputs by a running Gram matrix of every layer, K^2 values a layer while the schedule
    is on; one process, unsharded weights.

    Raises:
        PatternError, ScheduleError, ConfigError: settings that make no sense, named.
    """

    start: float = 0.0
    end: float = 0.5
    power: float = 3.0
    scores: Literal["factored", "explicit"] = "factored"
    score_optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: float = 0.9
    weight_decay: float = 1e-4
    elimination: Literal["auto", "combination", "weight"] = "auto"
    prior: Prior = "equal"
    criterion: Criterion = "learned"
    compensation: Literal["none", "pcg"] = "none"

    name: ClassVar[str] = "lbc"

    def __post_init__(self) -> None:
        super().__post_init__()
        Falling(self.start, self.end, self.power)
        check_not_negative(self, "momentum", "weight_decay")
        if not (isinstance(self.prior, Mapping) or callable(self.prior)):
            check_choice(f"{PREFIX}prior", self.prior, ("equal", "magnitude"))
        if self.criterion != "learned" and self.scores == "explicit":
            refuse("criterion", self.criterion, "explicit scores are learned", 'set scores="factored"')
        if self.criterion != "learned" and self.prior != "equal":
            refuse("prior", "given", f"{self.criterion} has no scores that start anywhere", 'set criterion="learned"')
        if self.scores == "factored" and self.score_optimizer != "sgd":
            refuse("score_optimizer", self.score_optimizer, "scores factor only under SGD", 'set scores="explicit"')
        if self.scores == "explicit" and self.elimination == "weight":
            refuse("elimination", "weight", "explicit scores belong to combinations", 'set scores="factored"')

    def eliminates(self, pattern: Pattern) -> str:
        auto = self.elimination == "auto" and self.scores == "factored"
        by_weight = self.elimination == "weight" or (auto and pattern.combinations > MOST_COMBINATIONS)
        if not by_weight and pattern.combinations > LARGEST_TABLE:
            wrong = f"{pattern} has {pattern.combinations:,} combinations, too many to score or to list"
            refuse("elimination", "combination", wrong, 'set scores="factored" and elimination="weight"')
        return "weight" if by_weight else "combination"

    def setting(self, pattern: Pattern, progress: float) -> int:
        survivors = Falling(self.start, self.end, self.power).count(progress, first=pattern.combinations)
        by_weight = self.eliminates(pattern) == "weight"
        return eliminate.weights_left(survivors, pattern) if by_weight else survivors

    def ended(self, pattern: Pattern, setting: Setting | None) -> bool:
        return setting == (pattern.n if self.eliminates(pattern) == "weight" else 1)

    def impossible(self, w: Weight) -> str:
        pattern, setting = w.pattern, w.setting
        if self._over(w):
            return wrong_counts(w, pattern.n)
        if "alive" not in w.state:
            return wrong_counts(w, pattern.m if setting is None else int(setting))  # type: ignore[arg-type]
        alive, keep_gm = w.state["alive"], w.grouping.view(w.state[masks.KEEP])
        left = pattern.combinations if setting is None else int(setting)  # type: ignore[arg-type]
        if bool((alive.sum(-1) != left).any()):
            return f"a group does not have {left} combinations alive, as all have here"
        other = bool((eliminate.held(alive, pattern) != (keep_gm != 0)).any())
        return "the mask is not what the combinations alive hold" if other else ""

    def init(self, w: Weight) -> State:
        state = super().init(w)
        if w.pattern.combinations == 1:  # M:M, nothing to choose
            return state
        if self.criterion in ("learned", "product", "fisher"):
            state |= self._scores(self._start(w), w)
        if self.eliminates(w.pattern) == "combination":
            shape = (*w.grouping.groups_shape(tuple(w.tensor.shape)), w.pattern.combinations)
            state["alive"] = torch.ones(shape, dtype=torch.bool, device=w.tensor.device)
        return state

    def _scores(self, start: Tensor, w: Weight) -> State:
        if self.scores == "explicit":
            return {"score": scoring.of_combinations(w.grouping.view(start), w.pattern).to(start.dtype)}
        momentum = {"momentum": torch.zeros_like(start)} if self.criterion == "learned" else {}
        return {"score": start, **momentum}

    def _start(self, w: Weight) -> Tensor:
        """The scores of the weights at the start, in the weight's shape and memory layout."""
        name, weight = w.name, w.tensor
        dtype = scoring.dtype_for(weight)
        if self.prior == "equal":  # 0 for the paper's 1 / C(M-1, N-1), next to which float32 would lose small steps
            return torch.zeros_like(weight, dtype=dtype)
        if self.prior == "magnitude":
            return weight.to(dtype).square().div_(2)
        given = self.prior(name, weight) if callable(self.prior) else self.prior.get(name)
        start = torch.empty_like(weight, dtype=dtype).copy_(_saliency(name, given, tuple(weight.shape)))
        if not bool(start.isfinite().all()):
            lost = f"{int((~start.isfinite()).sum())} values for {name} that are not finite"
            refuse("prior", lost, "scores start at the prior, and none could be chosen by", "give finite saliencies")
        return start

    def learn(self, weights: Sequence[Weight], at: At) -> None:
        if self.scores == "explicit":
            return
        learning = [w for w in weights if "score" in w.state and w.grad is not None]
        if self.criterion != "learned":
            for w in learning:
                self._average(w)
            return
        scores, momenta = [w.state["score"] for w in learning], [w.state["momentum"] for w in learning]
        grads, tensors = [w.grad for w in learning if w.grad is not None], [w.tensor for w in learning]
        decay, momentum = self.weight_decay, self.momentum
        if learning:
            scoring.sgd_(
                scores,
                momenta,
                grads,
                tensors,
                lr=at.lr,
                momentum=momentum,
                weight_decay=decay,
                score_pass=at.score_pass,
            )

    def _average(self, w: Weight) -> None:
        """Follow |g w| or g^2 in ``w.state["score"]``; a gradient that is not finite is left out."""
        assert w.grad is not None
        grad = w.grad.to(w.state["score"].dtype)
        now = (grad * w.tensor).abs() if self.criterion == "product" else grad.square()
        if bool(now.sum().isfinite()):
            w.state["score"].lerp_(now, _AVERAGE)

    @property
    def needs_rate(self) -> bool:
        return self.criterion == "learned"

    @property
    def begins_equal(self) -> bool:
        return self.criterion == "learned" and self.prior == "equal"

    @property
    def follows_inputs(self) -> bool:
        return self.criterion == "output" or self.compensation == "pcg"

    def learned(self, state: State) -> tuple[str, ...]:
        return ("score",) if self.scores == "explicit" and "score" in state else ()

    def optimizer(self, learned: list[nn.Parameter], lr: float) -> optim.Optimizer:
        if self.score_optimizer == "sgd":
            return optim.SGD(learned, lr, momentum=self.momentum, weight_decay=self.weight_decay)
        return optim.AdamW(learned, lr, weight_decay=self.weight_decay)

    def relaxed(self, w: Weight, at: At) -> Tensor:
        w_gm = w.grouping.view(w.tensor)
        return w.grouping.unview(scoring.relaxed(w_gm, w.state["score"], w.state["alive"], w.pattern))

    def advance(self, w: Weight, setting: Setting) -> bool:
        assert isinstance(setting, int)
        if self._over(w):
            return False
        by_weight = self.eliminates(w.pattern) == "weight"
        if setting >= (w.pattern.m if by_weight else w.pattern.combinations):
            return False
        if w.tensor.numel():  # a rank without rows of this weight follows the others
            eliminate.check_finite(w.name, w.tensor, "values")
            self._remove(w, setting, by_weight)
            if self.compensation == "pcg":
                _take_over_(w)
        if self.ended(w.pattern, setting):  # the best combination is left: nothing to learn any more
            for key in [key for key in w.state if key != masks.KEEP]:
                del w.state[key]
        return True

    def _over(self, w: Weight) -> bool:
        """Whether nothing is left to choose."""
        return w.pattern.combinations == 1 or self.ended(w.pattern, w.setting)

    def _remove(self, w: Weight, left: int, by_weight: bool) -> None:
        scores = self._judged(w)
        eliminate.check_finite(w.name, scores, "scores")
        keep_gm = w.grouping.view(w.state[masks.KEEP])
        explicit = self.scores == "explicit"
        score = scores if explicit else w.grouping.view(scores)
        if by_weight:
            kept = eliminate.weights(keep_gm != 0, score, left)
        else:
            kept = eliminate.combinations_(w.state["alive"], score, w.pattern, left, explicit=explicit)
        keep_gm.copy_(masks.bits(kept))

    def _judged(self, w: Weight) -> Tensor:
        """The scores to remove by, of the weight's shape; explicit ones ``[..., C]``."""
        if self.criterion in ("learned", "product"):
            return w.state["score"]
        if self.criterion == "output":
            gram_gkk = w.state[GRAM]
            rows = to_rows(w.tensor, w.grouping, len(gram_gkk)).to(gram_gkk.dtype)
            return from_rows(saliency(rows, gram_gkk, DAMPING, w.name), w.grouping, tuple(w.tensor.shape))
        energy = w.tensor.to(scoring.dtype_for(w.tensor)).square().div_(2)
        return energy.mul_(w.state["score"]) if self.criterion == "fisher" else energy

    def describe(self) -> dict[str, Any]:
        settings = super().describe()
        for option, default in (("criterion", "learned"), ("compensation", "none")):
            if settings[option] == default:  # states from before there was a choice say nothing of it
                del settings[option]
        return settings

    def survivors(self, w: Weight) -> int | None:
        if self._over(w):
            return 1
        if "alive" in w.state:
            return int(w.state["alive"].flatten(0, -2)[:1].sum()) or None
        left = int((w.grouping.view(w.state[masks.KEEP]) != 0).flatten(0, -2)[:1].sum())
        return math.comb(left, w.pattern.n) or None


def _take_over_(w: Weight) -> None:
    """Let the weights that are kept now give the outputs that all gave before, as well as they can."""
    gram_gkk = w.state[GRAM]
    rows = to_rows(w.tensor, w.grouping, len(gram_gkk)).to(gram_gkk.dtype)
    keep = to_rows(w.state[masks.KEEP], w.grouping, len(gram_gkk)) != 0
    taken = refit_pcg(rows, keep, gram_gkk, rows, _REFIT_STEPS)
    w.tensor.copy_(from_rows(taken, w.grouping, tuple(w.tensor.shape)))


def _saliency(name: str, given: Any, shape: tuple[int, ...]) -> Tensor:
    """What was given for a weight: a real tensor of its shape, with values."""
    if not isinstance(given, Tensor):
        what = "no entry" if given is None else f"a {type(given).__name__}"
    elif given.is_complex() or given.is_meta or given.is_nested or given.is_quantized or given.layout != torch.strided:
        what = f"a tensor of {given.dtype} on {given.device} that is not plain real numbers"
    elif tuple(given.shape) != shape:
        what = f"shape {tuple(given.shape)}"
    else:
        return given
    refuse("prior", what, f"{name} needs a saliency of shape {shape}", "give one for every sparse weight")
