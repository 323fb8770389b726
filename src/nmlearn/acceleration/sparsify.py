"""``sparsify``: the recommended way to a sparse form of a pretrained network, in one call.

Each part is a call of its own: ``nm.allocate``, ``sparsifier.apply``, ``nm.Distillation``, ``sparsifier.attach``.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from nmlearn.acceleration.allocate import allocate
from nmlearn.acceleration.allocation import Allocation
from nmlearn.errors import ConfigError
from nmlearn.learn import calibration, stages
from nmlearn.learn.distillation import Distillation
from nmlearn.learn.ending import Summary
from nmlearn.learn.losses import Outputs
from nmlearn.learn.norms import batch_norms, reestimate
from nmlearn.learn.sparsifier import Sparsifier
from nmlearn.maths.pattern import Pattern
from nmlearn.methods.method import Method
from nmlearn.methods.sparsegpt import SparseGPT
from nmlearn.model.example import modes_kept, quiet
from nmlearn.model.names import unwrap
from nmlearn.model.plan import Plan, Rule

Loss = Callable[[nn.Module, Any], Tensor]
_WARMUP = 0.1  # of the steps
_CLIP = 1.0  # the gradient's norm


@dataclass(frozen=True)
class Sparsified:
    """What :func:`sparsify` did; ``print`` shows it.

    Attributes:
        plan: which weights are sparse.
        summary: of the weights, as ``finalize`` verified them.
        allocation: the patterns that ``speedup`` chose; None without it.
        change: how far the outputs of the first batch were from the dense ones when the weights were pruned, before any
            training, over the size of these: ``|y - y_dense| / |y_dense|``; 0 for methods that prune while training.
        steps: of training.
        losses: the mean loss over the first and the last tenth of the steps, without distillation; None untrained.
        seconds: of each part, by name.
    """

    plan: Plan
    summary: Summary
    allocation: Allocation | None
    change: float
    steps: int
    losses: tuple[float, float] | None
    seconds: Mapping[str, float]

    def __str__(self) -> str:
        trained = f"{self.steps} steps: loss {self.losses[0]:.4g} -> {self.losses[1]:.4g}\n" if self.losses else ""
        spent = ", ".join(f"{name} {took:.1f} s" for name, took in self.seconds.items())
        change = f"pruning changed the outputs of a batch by {self.change:.1%}\n" if self.change else ""
        return f"{change}{trained}{spent}\n{self.summary}"


def sparsify(
    model: nn.Module,
    pattern: str | Pattern | None = None,
    *,
    batches: Iterable[Any],
    speedup: float | None = None,
    loss: Loss | None = None,
    steps: int = 0,
    lr: float = 1e-3,
    method: Method | None = None,
    rules: Mapping[str, Rule] | None = None,
    inputs: Callable[[Any], Any] = lambda batch: batch,
    calibrate: int = 8,
    distillation: Distillation | bool = True,
) -> Sparsified:
    """Make a pretrained network sparse: calibrate, prune with compensation, fine-tune with distillation, verify.

    Without ``loss`` it stops after compensation. With it follow ``steps`` of AdamW (weight decay 0.01, gradients
    clipped to norm 1, a tenth of the steps warmed up, then linearly to 0) on the kept weights.

    Args:
        model: in training, its parameters that require gradients learn; its training flags stay as they are.
        pattern: N:M for every weight that no rule gives another; this, ``speedup`` or ``method``.
        batches: a loader or a list, which is gone through again and again.
        speedup: instead, the patterns that ``nm.allocate`` chooses for this speedup of the whole model on a batch,
            by the times of the packed kernels on this machine.
        loss: (model, batch) -> scalar, such as ``lambda model, b: F.cross_entropy(model(b[0]), b[1])``.
        steps: optimizer steps; needed with ``loss``.
        lr: the highest learning rate. Sparse networks want more than dense ones: about three times at 1:4.
        method: another one. Default: ``nm.SparseGPT(pattern, refit="pcg")``. One that learns while training needs
            ``loss``.
        rules: as for a sparsifier.
        inputs: what the model takes of a batch: a tensor, a tuple of arguments or a dict of keyword arguments.
        calibrate: how many batches to calibrate with.
        distillation: what to learn from besides the loss, not attached yet; False for the loss alone. True: the hidden
            states of the model as it is now, at its repeated blocks, unless it has none or has batch norms (in training
            those compute with other statistics than a teacher's).

    Returns:
        what was done, and measured.

    Raises:
        ConfigError: choices that exclude each other, a loss without steps, no batch, or what the parts refuse.
        AttachError, PlanError, DataError: as :meth:`nmlearn.Sparsifier.apply` and ``attach``.
    """
    _check([pattern, speedup, method], loss, steps, calibrate)
    given = [inputs(batch) for batch in itertools.islice(batches, calibrate)]
    clock = _Clock()
    dense = Outputs(model, given[:1])
    chosen = None
    if speedup is not None:
        chosen = allocate(model, given[0], budget={"speedup": speedup}, batches=given, rules=rules)
        clock.ends("allocation")
    method = method or SparseGPT(pattern or "2:4", refit="pcg")
    sparsifier = Sparsifier(model, method, rules if chosen is None else chosen, example=given[0])
    teacher = _own(model, sparsifier.plan) if distillation is True else distillation or None
    teacher = teacher if loss else None
    if teacher:
        teacher.attach(model)
    summary, losses, change = None, None, 0.0
    if method.at_once({Pattern(method.pattern)}):
        summary = sparsifier.apply(given if method.needs != "nothing" else None)
        reestimate(model, given)
        clock.ends("pruning")
        with quiet(model):
            change = dense.change() ** 0.5
    if loss:
        try:
            losses = _train(model, sparsifier, batches, loss, steps, lr, teacher)
            summary = sparsifier.finalize()
        finally:
            sparsifier.detach()
            if teacher:
                teacher.remove()
        clock.ends("training")
    assert summary is not None
    return Sparsified(sparsifier.plan, summary, chosen, change, steps if loss else 0, losses, clock.seconds)


def _train(
    model: nn.Module,
    sparsifier: Sparsifier,
    batches: Iterable[Any],
    loss: Loss,
    steps: int,
    lr: float,
    teacher: Distillation | None,
) -> tuple[float, float]:
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr, weight_decay=0.01)
    warm = max(1.0, _WARMUP * steps)
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, (steps - step) / max(1.0, steps - warm))
    )
    sparsifier.attach(optimizer, steps)
    seen: list[Tensor] = []
    with modes_kept(model):
        model.train()
        for batch in itertools.islice(_again(batches), steps):
            own = loss(model, batch)
            seen.append(own.detach())
            (own + teacher.loss() if teacher else own).backward()
            nn.utils.clip_grad_norm_(learning, _CLIP)
            optimizer.step()
            rate.step()
            optimizer.zero_grad(set_to_none=True)
    tenth = max(1, steps // 10)
    return tuple(float(torch.stack(some).float().mean()) for some in (seen[:tenth], seen[-tenth:]))  # type: ignore[return-value]


def _again(batches: Iterable[Any]) -> Iterator[Any]:
    """The batches, epoch after epoch."""
    while True:
        count = 0
        for batch in batches:
            count += 1
            yield batch
        if not count:
            fix = "give a list or a loader; a generator or an iterator gives its batches only once"
            _refuse("batches", "no batch for another epoch", "training goes on", fix)


def _own(model: nn.Module, plan: Plan) -> Distillation | None:
    """Distillation from the model as it is, at the blocks that hold sparse weights; None where there are none."""
    if batch_norms(model):
        return None
    layers, _ = calibration.seeable(model, plan.sparse)
    blocks = stages.blocks_of(unwrap(model), layers.values())
    own = {name.rpartition(".")[0] for name in blocks}
    names = {block for block in blocks.values() if block not in own}
    return Distillation("copy", hidden=dict.fromkeys(names, 1.0)) if names else None


def _check(ways: list[Any], loss: object, steps: int, calibrate: int) -> None:
    pattern, speedup, method = ways
    if ways.count(None) != 2:
        fix = 'give one of them: a pattern such as "2:4", a speedup such as 2.0, or a method, which has its pattern'
        _refuse("sparsify", f"pattern={pattern}, speedup={speedup}, method={method}", "one says it all", fix)
    if (loss is None) != (steps == 0) or steps < 0:
        fix = "give both, loss=lambda model, batch: ... and steps=100, or none to stop after compensation"
        _refuse("sparsify", f"loss {'given' if loss else 'not given'}, steps={steps}", "they belong together", fix)
    if calibrate < 1:
        _refuse("calibrate", str(calibrate), "it needs a batch at least", "write 8")
    if method is not None and loss is None and not method.at_once({Pattern(method.pattern)}):
        _refuse("sparsify", f"the method {method.name} without a loss", "it learns in training", "give loss and steps")


def _refuse(where: str, given: str, wrong: str, fix: str) -> NoReturn:
    raise ConfigError(where=where, given=given, wrong=wrong, fix=fix)


class _Clock:
    """Seconds of parts."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._since = time.perf_counter()

    def ends(self, part: str) -> None:
        now = time.perf_counter()
        self.seconds[part], self._since = now - self._since, now
