"""Calibration: what the inputs of a model's weights are like, from a few batches.

Either of the whole model at once (:func:`calibrate`), or stage by stage (:func:`by_stages`): there each stage is fed
what the layers before it produce by then, so that a solver that changes them is seen by the next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from nmlearn.errors import ConfigError, DataError, PlanError
from nmlearn.learn import collecting, stages
from nmlearn.learn.collecting import Collector, Layer, Sums
from nmlearn.learn.running import reached, run
from nmlearn.maths.inputs import Inputs, finite
from nmlearn.methods.oneshot import OneShot
from nmlearn.model import plan as planning
from nmlearn.model.example import quiet
from nmlearn.model.found import find
from nmlearn.model.names import unwrap
from nmlearn.model.plan import Plan, PlanRow

MEMORY = 2**30
_PIECE = 2**26
_ASIDE = 4  # pieces of inputs that may exist at once: padded, copied, cast, and in the order of a product


@dataclass(frozen=True, eq=False)
class Seen(Mapping[str, Inputs]):
    """What calibration saw: the inputs of each weight, by its qualified name.

    Attributes:
        inputs: by name; on each weight's device.
        unseen: the weights of the plan whose inputs were not seen, and why.
    """

    inputs: Mapping[str, Inputs]
    unseen: Mapping[str, str]

    def __getitem__(self, name: str) -> Inputs:
        return self.inputs[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.inputs)

    def __len__(self) -> int:
        return len(self.inputs)

    def __repr__(self) -> str:
        return f"Seen(inputs of {len(self)} weights, {len(self.unseen)} unseen, {self.memory():,} bytes)"

    def memory(self) -> int:
        """The bytes that the sums take."""
        sums = [(x.sum_gk, x.square_gk, x.gram_gkk) for x in self.inputs.values()]
        return sum(tensor.nbytes for some in sums for tensor in some if tensor is not None)


def calibrate(
    model: nn.Module,
    batches: Iterable[Any],
    needs: Literal["sums", "gram"] = "gram",
    *,
    plan: Plan | None = None,
    memory: int = MEMORY,
) -> Seen:
    """Add up the inputs of the weights of linear layers and convolutions while a model runs on batches.

    The model runs in evaluation mode without gradients, and is as before afterwards: training flags, buffers, hooks and
    random generators. The sums are float32 (float64 for weights of float64), also under autocast; on a GPU their
    products are as exact as ``torch.set_float32_matmul_precision`` says.

    Args:
        model: any module, DDP and torch.compile are looked through; layers are found by hooks.
        batches: a finite iterable, kept in memory: each a tensor, a tuple of arguments or a dict of keyword arguments.
            With ``attention_mask`` ``[B, T]`` in a dict, inputs ``[B, T, ..., K]`` or ``[B T, K]`` of linear layers
            are left out where it is 0.
        needs: "sums" for means, variances and norms; "gram" for Gram matrices ``[G, K, K]`` too.
        plan: whose sparse weights to look at, such as ``sparsifier.plan``. Default: all that any pattern could take.
        memory: bytes that the sums, and the pieces of inputs that are copied to be added, may take together.

    Returns:
        the sums by name, and the weights that could not be seen.

    Raises:
        ConfigError: no batch, one that the model refuses, or sums that take more than ``memory``.
        DataError: inputs that are not finite.
    """
    rows = (planning.plan(model, OneShot("1:1")) if plan is None else plan).sparse
    layers, unseen = seeable(model, rows)
    gram, piece = _wants_gram(needs), piece_of(memory)
    need = sum(layer.bytes(gram) for layer in layers.values())
    if need > memory - _ASIDE * piece:
        fix = 'choose fewer weights with plan, needs="sums", or more memory; sparsifier.apply holds one block at a time'
        _refuse_memory(f"{len(layers)} weights", need, memory, piece, fix)
    given = listed(batches)
    collector = Collector({name: Sums(layer, gram, piece) for name, layer in layers.items()}, lambda _: None)
    with quiet(model):
        for _ in _passes(model, given, collector, layers.values()):
            pass
    inputs = {name: sums.inputs() for name, sums in collector.sums.items()}
    unseen |= {name: layers[name].unreached() for name, some in inputs.items() if not some.tokens}
    _check_finite({name: some for name, some in inputs.items() if some.tokens})
    return Seen({name: some for name, some in inputs.items() if some.tokens}, unseen)


def by_stages(
    model: nn.Module,
    batches: Iterable[Any],
    rows: Sequence[PlanRow],
    needs: Literal["sums", "gram"],
    memory: int,
    solve: Callable[[PlanRow, Inputs], None],
) -> None:
    """Calibrate stage by stage, and let each weight be solved before the next stage runs.

    A stage is a run of layers, in order of call, within one block and the bound of memory. For each the batches run
    from the model's start to the stage's last layer: memory is that of one stage, time grows with their number. A layer
    that is called again in later stages is seen there with those still dense.

    Args:
        model: as for :func:`calibrate`; so are ``batches`` and ``memory``.
        rows: the weights; all of them have to be seen.
        solve: is given each weight with its inputs, and writes the weight. What it needs itself comes on top.

    Raises:
        PlanError: weights whose inputs cannot be seen, or that no batch reaches; nothing was solved then.
        ConfigError: as for :func:`calibrate`.
        DataError: inputs that are not finite, or a layer that no batch reaches any more; what stands before it in the
            order of calls is solved already.
    """
    layers, unseen = seeable(model, rows)
    _refuse_unseen(unseen)
    gram, piece = _wants_gram(needs), piece_of(memory)
    most = memory - _ASIDE * piece
    for layer in layers.values():
        if (need := layer.bytes(gram)) > most:
            _refuse_memory(layer.name, need, memory, piece, "give more memory, or leave it dense with a rule: None")
    given = listed(batches)
    with quiet(model):
        runs = _recorded(model, given, layers)
        never = layers.keys() - {name for names in runs for name in names}
        _refuse_unseen({name: layer.unreached() for name, layer in layers.items() if name in never})
        for stage in stages.cut(layers, runs, unwrap(model), gram, most):
            sums = _collected(model, given, stage, gram, piece)
            _check_finite({name: one.inputs() for name, one in sums.items()})
            for layer in stage.layers:
                solve(layer.row, sums.pop(layer.name).inputs())


def seeable(model: nn.Module, rows: Sequence[PlanRow]) -> tuple[dict[str, Layer], dict[str, str]]:
    """The weights whose inputs hooks can see, by name, and why they cannot see those of the others."""
    owners = {id(item.parameter): tuple(dict.fromkeys(item.owners)) for item in find(model)}
    attentions = {id(m.out_proj): m for m in unwrap(model).modules() if isinstance(m, nn.MultiheadAttention)}
    found = {row.name: collecting.layer(row, owners.get(id(row.parameter), ()), attentions) for row in rows}
    layers = {name: layer for name, layer in found.items() if isinstance(layer, Layer)}
    return layers, {name: why for name, why in found.items() if isinstance(why, str)}


def piece_of(memory: int) -> int:
    """How many bytes of inputs are copied at once, within a bound on memory."""
    return min(_PIECE, memory // (4 * _ASIDE))


def listed(batches: Iterable[Any]) -> list[Any]:
    """The batches, which are run several times.

    Raises:
        ConfigError: there are none.
    """
    if isinstance(batches, Tensor | Mapping | str) or not isinstance(batches, Iterable):
        fix = "give a list of batches, such as [batch]"
        raise ConfigError(where="batches", given=type(batches).__name__, wrong="it is no list of batches", fix=fix)
    given = list(batches)
    if not given:
        fix = "give some; a generator or an iterator gives its batches only once"
        raise ConfigError(where="batches", given="no batch", wrong="there is nothing to calibrate with", fix=fix)
    return given


def _passes(model: nn.Module, batches: Sequence[Any], collector: Collector, layers: Iterable[Layer]) -> Iterator[None]:
    """Run all batches with hooks on layers; stops before each, and after the last."""
    collector.hang(list(layers))
    try:
        for batch in batches:
            collector.mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
            yield
            run(model, batch)
    finally:
        collector.remove()


def _recorded(model: nn.Module, batches: Sequence[Any], layers: Mapping[str, Layer]) -> list[list[str]]:
    """The names of the weights in the order of the calls with them, of each batch."""
    runs: list[list[str]] = []
    for _ in _passes(model, batches, Collector({}, lambda name: runs[-1].append(name)), layers.values()):
        runs.append([])
    return runs


def _collected(
    model: nn.Module, batches: Sequence[Any], stage: stages.Stage, gram: bool, piece: int
) -> dict[str, Sums]:
    """The sums of a stage; each batch ends where the last of its layers was given its input."""
    calls = 0

    def called(_: str) -> None:
        nonlocal calls
        calls += 1
        if calls == stage.calls:
            reached()

    collector = Collector({layer.name: Sums(layer, gram, piece) for layer in stage.layers}, called)
    for _ in _passes(model, batches, collector, stage.layers):
        calls = 0
    return collector.sums


def _wants_gram(needs: str) -> bool:
    if needs not in ("sums", "gram"):
        raise ConfigError(where="needs", given=repr(needs), wrong="there is no such need", fix='write "sums" or "gram"')
    return needs == "gram"


def _check_finite(inputs: Mapping[str, Inputs]) -> None:
    for name, some in inputs.items():
        if not some.tokens:
            fix = "give more batches, or leave it dense with a rule: None"
            wrong = "no batch reached its layer after the blocks before it became sparse"
            raise DataError(where=name, given="inputs of no token", wrong=wrong, fix=fix)
        if not finite(some):
            fix = "look for the batch or the layer before it that gives them; half precision overflows at 65504"
            wrong = "its inputs have values that are not finite, or squares that overflow"
            raise DataError(where=name, given=f"inputs of {some.tokens:,} tokens", wrong=wrong, fix=fix)


def _refuse_unseen(unseen: Mapping[str, str]) -> None:
    if unseen:
        name = next(iter(unseen))
        others = f"; and {len(unseen) - 1} more, such as {list(unseen)[1]}" if len(unseen) > 1 else ""
        fix = "leave it dense with a rule: None, or use a method that needs no calibration, such as nm.OneShot"
        raise PlanError(where=name, given="a weight to calibrate", wrong=f"{unseen[name]}{others}", fix=fix)


def _refuse_memory(where: str, need: int, memory: int, piece: int, fix: str) -> None:
    wrong = f"the sums take {need:,} bytes, and {_ASIDE * piece:,} are set aside for inputs"
    raise ConfigError(where=where, given=f"memory={memory:,} bytes", wrong=wrong, fix=fix)
