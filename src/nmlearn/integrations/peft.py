"""Adapters of Hugging Face's PEFT on a sparse base: merging one keeps the zeros, and reports what that cost.

    from nmlearn.integrations.peft import merge

    merged = merge(model, inputs=batch)     # in place of model.merge_and_unload()
    print(merged)                           # per weight: how much of the update fell on pruned positions
    merged.model.save_pretrained("merged")  # an ordinary model, N:M sparse

Works with every adapter that PEFT can merge: it compares weights before and after. See docs/peft.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from nmlearn.errors import ConfigError
from nmlearn.files.selection import choose
from nmlearn.files.tensors import plain_state
from nmlearn.integrations import torchvision
from nmlearn.maths import masks
from nmlearn.maths.groups import Grouping
from nmlearn.maths.pattern import Pattern
from nmlearn.maths.verify import verify
from nmlearn.model.example import evaluating
from nmlearn.model.names import plain_name
from nmlearn.model.peft_names import original_name
from nmlearn.model.plan import Rule, input_axes

torchvision.load()  # which PEFT imports too, through transformers
from peft.tuners.tuners_utils import BaseTunerLayer  # noqa: E402
from peft.utils.other import ModulesToSaveWrapper  # noqa: E402


@dataclass(frozen=True)
class MergedWeight:
    """What merging did to one sparse weight.

    Attributes:
        name: the weight's name before PEFT.
        pattern: of the base, and of the merged weight.
        update: the Frobenius norm of the adapter's update, relative to that of the base weight.
        lost: the share of the update's energy (squared norm) that fell on pruned positions, in [0, 1].
        change: the Frobenius norm of what was cleared at these positions, relative to that of the merged weight.
    """

    name: str
    pattern: Pattern
    update: float
    lost: float
    change: float


@dataclass(frozen=True)
class Outputs:
    """How far outputs on the given inputs are from those with the unmerged adapter: relative, in the Euclidean norm.

    Attributes:
        merged: of the merged model.
        base: of the base without the adapter; if ``merged`` is close to it, merging lost what the adapter had learned.
    """

    merged: float
    base: float


@dataclass(frozen=True)
class _Adapted:
    """A weight that merging changes: where it is now, and where it will be (for modules_to_save, in the copy)."""

    name: str
    base: nn.Module
    merged: nn.Module
    attribute: str

    def before(self) -> Tensor:
        return getattr(self.base, self.attribute).detach()

    def after(self) -> Tensor:
        return getattr(self.merged, self.attribute).detach()


@dataclass(frozen=True)
class Merged:
    """A merged model and what it cost; ``str()`` is a table.

    Attributes:
        model: the ordinary model without PEFT's layers, or with ``unload=False`` the model with adapters.
        weights: one entry for every sparse weight of the base that has an adapter.
        outputs: measured if inputs were given.
        undo: the previous weights, with ``unload=False``.
    """

    model: Any
    weights: tuple[MergedWeight, ...]
    outputs: Outputs | None = None
    undo: tuple[tuple[_Adapted, Tensor], ...] = field(default=(), repr=False, compare=False)

    @torch.no_grad()
    def unmerge(self) -> None:
        """Restore the weights of the base, bit for bit, after ``merge(model, unload=False)``.

        PEFT's own ``unmerge_adapter`` subtracts the update at pruned positions too, where nothing was added.

        Raises:
            ConfigError: the adapters were unloaded, or are no longer merged.
        """
        if not self.undo or not any(layer.merged for layer in _layers(self.model)):
            raise _refusal(self.model, "no adapter is merged into it", "call merge(model, unload=False) first")
        self.model.unmerge_adapter()
        for each, weight in self.undo:
            each.after().copy_(weight)

    def __str__(self) -> str:
        lines = [("weight", "pattern", "update", "lost", "change")]
        for row in self.weights:
            update, lost, change = (f"{x:.2%}" for x in (row.update, row.lost, row.change))
            lines.append((row.name, str(row.pattern), update, lost, change))
        name, pattern = (max(len(line[i]) for line in lines) for i in range(2))
        table = [f"{n:<{name}} {p:<{pattern}} {u:>9} {part:>8} {c:>9}" for n, p, u, part, c in lines]
        if self.outputs:
            off = f"outputs off by {self.outputs.merged:.2%}; without the adapter by {self.outputs.base:.2%}"
            table.append(off)
        return "\n".join(table)


@torch.no_grad()
def merge(
    model: Any,
    adapters: Sequence[str] | None = None,
    *,
    patterns: Mapping[str, Rule] | None = None,
    inputs: Any = None,
    unload: bool = True,
) -> Merged:
    """Merge adapters into their sparse base, clear the positions that the base had pruned, and verify every group.

    While it works, it needs memory for another copy of the adapted sparse weights.

    Args:
        model: a ``PeftModel`` whose base has N:M sparse weights.
        adapters: names of those to merge; by default all active ones.
        patterns: a glob on a weight's or module's original name -> its pattern, which is then verified; by default
            found from the zeros. None leaves the merged weight dense.
        inputs: arguments of a call of the model (a mapping, a tuple or one tensor) on which the outputs are compared.
        unload: False keeps the adapters in the model, as ``merge_adapter`` does; :meth:`Merged.unmerge` undoes that.

    Raises:
        ConfigError: adapters that PEFT cannot merge or has merged, a quantized base, no sparse weight with an adapter.
        StateError: base weights that are not plain memory: sharded, quantized or offloaded ones.
        ViolationError: the base breaks ``patterns``; PatternError, PlanError: they do not fit the model.
    """
    _check(model, adapters or ())
    sparse = _sparse(model, patterns or {})
    verify({each.name: (each.before(), cut) for each, cut in sparse}, 1.0)
    before = [(each, cut, each.before().clone()) for each, cut in sparse]
    undo = () if unload else tuple((each, each.after().clone()) for each, _ in sparse)
    expected = None if inputs is None else (_output(model, inputs), _without_adapter(model, inputs))
    merged = _merged(model, None if adapters is None else list(adapters), unload)
    rows = tuple(_reapply(each, cut, weight) for each, cut, weight in before)
    verify({each.name: (each.after(), cut) for each, cut in sparse}, 1.0)
    if expected is None:
        return Merged(merged, rows, undo=undo)
    adapted, base = expected
    return Merged(merged, rows, Outputs(_off(_output(merged, inputs), adapted), _off(base, adapted)), undo)


def _merged(model: Any, adapters: list[str] | None, unload: bool) -> Any:
    if unload:
        return model.merge_and_unload(safe_merge=True, adapter_names=adapters)
    model.merge_adapter(adapter_names=adapters, safe_merge=True)
    return model


def _check(model: Any, adapters: Sequence[str]) -> None:
    wrong = ""
    if not hasattr(model, "merge_and_unload") or not _layers(model):
        wrong, fix = "it has no adapter that PEFT can merge", "give a model of get_peft_model; prompts cannot be merged"
    elif any(layer.merged for layer in _layers(model)):
        wrong, fix = (
            "an adapter is already merged into it, and the base's zeros are gone",
            "call model.unmerge_adapter()",
        )
    elif unknown := [name for name in adapters if name not in model.peft_config]:
        wrong, fix = f"it has no adapter {', '.join(unknown)}", f"its adapters are {', '.join(model.peft_config)}"
    if wrong:
        raise _refusal(model, wrong, fix)
    for layer in _layers(model):
        if getattr(layer, "quantization_backend", None) is not None or _quantized(layer.get_base_layer()):
            given, fix = type(layer.get_base_layer()).__name__, "dequantize the base, or do not merge the adapter"
            raise ConfigError(where="merge", given=given, wrong="a quantized base has no zeros to keep", fix=fix)
    for layer in _layers(model):  # before anything changes: PEFT would stop half-way
        if not all(bool(p.isfinite().all()) for p in layer.parameters() if p.is_floating_point()):
            raise _refusal(model, "a layer with an adapter has values that are not finite", "load an intact adapter")


def _refusal(model: Any, wrong: str, fix: str) -> ConfigError:
    return ConfigError(where="model", given=type(model).__name__, wrong=wrong, fix=fix)


def _quantized(base: nn.Module) -> bool:
    """Whether a layer stores its weights as integers."""
    tensors = (*base.parameters(recurse=False), *base.buffers(recurse=False))
    return any(hasattr(base, name) for name in ("qweight", "W_q")) or any(
        tensor.dim() > 1 and not tensor.is_floating_point() for tensor in tensors
    )


def _layers(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]


def _sparse(model: nn.Module, patterns: Mapping[str, Rule]) -> list[tuple[_Adapted, Grouping]]:
    """The adapted weights whose base has a pattern, found or given."""
    adapted = {each.name: each for each in _adapted(model)}
    axes = {original_name(name): axis for name, axis in input_axes(model).items()}
    state = plain_state({name: each.before() for name, each in adapted.items()})
    found = choose(state, {}, axes, patterns)
    if not found:
        wrong = f"none of its {len(adapted)} weights with an adapter is N:M sparse"
        fix = "call model.merge_and_unload(); if the base was sparse, initializing the adapter (PiSSA, OLoRA ...) "
        fix += "rewrote it: save it with path_initial_model_for_weight_conversion, and load it on the base"
        raise _refusal(model, wrong, fix)
    return [(adapted[name], cut) for name, cut in found.items()]


def _adapted(model: nn.Module) -> Iterator[_Adapted]:
    """Every weight of two or more dimensions that merging replaces, once."""
    seen: set[int] = set()
    for path, module in model.named_modules():
        for inner, base, merged in _pairs(module):
            for attribute, weight in list(base.named_parameters(recurse=False)) + _plain_weights(base):
                name = original_name(plain_name(".".join(filter(None, (path, inner, attribute)))))
                if weight.dim() > 1 and id(weight) not in seen:
                    seen.add(id(weight))
                    yield _Adapted(name, base, merged, attribute)


def _plain_weights(base: nn.Module) -> list[tuple[str, Tensor]]:
    """Weights that PEFT leaves as plain tensors after merging into torch's attention layers."""
    return [
        (name, value) for name, value in vars(base).items() if isinstance(value, Tensor) and name.endswith("weight")
    ]


def _pairs(module: nn.Module) -> Iterator[tuple[str, nn.Module, nn.Module]]:
    """Path within the module, the layer of the base, and the layer that it becomes."""
    if isinstance(module, BaseTunerLayer):
        yield "", module.get_base_layer(), module.get_base_layer()
    elif isinstance(module, ModulesToSaveWrapper) and module.active_adapters:
        copy = module.modules_to_save[module.active_adapters[0]]
        for path, base in module.original_module.named_modules():
            yield path, base, copy.get_submodule(path)


def _reapply(each: _Adapted, cut: Grouping, base: Tensor) -> MergedWeight:
    """Clear in the merged weight what the base had pruned."""
    merged, keep = each.after(), masks.bits(masks.nonzero_bits(base))
    pruned = masks.clear_(merged.clone(), masks.bits(keep == 0))
    energies = [_energy(x) for x in (merged.float() - base.float(), base, pruned, merged)]
    update, whole, lost, all_merged = energies
    masks.clear_(merged, keep)
    return MergedWeight(
        name=each.name,
        pattern=cut.pattern,
        update=_ratio(update, whole) ** 0.5,
        lost=_ratio(lost, update),
        change=_ratio(lost, all_merged) ** 0.5,
    )


def _energy(x: Tensor) -> float:
    return float(x.float().square().sum(dtype=torch.float64))


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _off(output: Tensor, expected: Tensor) -> float:
    return _ratio(_energy(output.float() - expected.float()), _energy(expected)) ** 0.5


def _without_adapter(model: Any, inputs: Any) -> Tensor:
    with model.disable_adapter():
        return _output(model, inputs)


def _output(model: nn.Module, inputs: Any) -> Tensor:
    """The logits, or the first tensor of what a call returns; in evaluation mode."""
    with evaluating(model):
        if isinstance(inputs, Mapping):
            output = model(**inputs)
        else:
            output = model(*inputs) if isinstance(inputs, tuple) else model(inputs)
    output = getattr(output, "logits", output)
    found: Tensor = output if isinstance(output, Tensor) else output[0]
    return found.clone()
