"""What holds averaged weights (EMA, SWA), whichever library made the average.

Known are a model in wrappers (``AveragedModel`` and what is made from it, torchvision's, timm's), an object with one in
``.module``, tensors by name, and lists of tensors in the order of ``model.parameters()``, also as the ``shadow_params``
of torch_ema and diffusers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

from torch import Tensor, nn

from nmlearn.errors import PlanError
from nmlearn.model.names import parameters, plain_name, unwrap

_LIST = "shadow_params"
_KNOWN = (
    "give an averaged copy of the model that the sparsifier was made for, its state dict, or its tensors in the order "
    "of model.parameters()"
)


def module(average: Any) -> Any:
    """The module in ``.module`` of an object that is no module and no mapping; everything else as it is."""
    if not isinstance(average, nn.Module | Mapping) and isinstance(
        inner := getattr(average, "module", None), nn.Module
    ):
        return inner
    return average


def shadows(average: Any) -> list[Tensor] | None:
    """The tensors that an average keeps in the order of ``model.parameters()``; None where it keeps something else."""
    listed = average.get(_LIST) if isinstance(average, Mapping) else getattr(average, _LIST, average)
    tensors = list(listed) if isinstance(listed, Sequence) and not isinstance(listed, str) else []
    return tensors if tensors and all(isinstance(each, Tensor) for each in tensors) else None


def weights(average: Any, model: nn.Module, names: Sequence[str]) -> dict[str, Tensor]:
    """The averaged tensors of these weights, to be written in place.

    Args:
        average: one of the kinds that the head of this file names.
        model: what is averaged; it says the order of lists, and the shapes.
        names: qualified names in it.

    Returns:
        by these names, of the shapes that the model's weights have.

    Raises:
        PlanError: one is missing or has another shape, or nothing that is known.
    """
    named, average = parameters(model), module(average)
    found = _listed(tensors, model) if (tensors := shadows(average)) is not None else _named(average, names)
    for name in names:
        if name not in found:
            _refuse(name, average, "it has no such weight")
        if name in named and found[name].shape != named[name].shape:
            wrong = f"its weight has shape {list(found[name].shape)}, the model's {list(named[name].shape)}"
            _refuse(name, average, wrong)
    return {name: found[name] for name in names}


def _listed(tensors: list[Tensor], model: nn.Module) -> Mapping[str, Tensor]:
    """Names for tensors in the order of the parameters: of all, or of those that learn (torch_ema up to 0.2)."""
    every = list(unwrap(model).parameters())
    for some in (every, [p for p in every if p.requires_grad]):
        if [p.shape for p in some] == [each.shape for each in tensors]:
            places = {id(p): each for p, each in zip(some, tensors, strict=True)}
            return {name: places[id(p)] for name, p in parameters(model).items() if id(p) in places}
    wrong = f"they are not those of the model's {len(every)} parameters, in number or in shapes"
    raise PlanError(where="finalize(model=...)", given=f"{len(tensors)} averaged tensors", wrong=wrong, fix=_KNOWN)


def _named(average: Any, names: Sequence[str]) -> Mapping[str, Tensor]:
    """Tensors by plain names; within ``module`` where they are not found above it."""
    if isinstance(average, nn.Module):
        found: Mapping[str, Tensor] = parameters(average)
        inner = getattr(average, "module", None)
        if isinstance(inner, nn.Module) and _missing(found, names):
            return _named(inner, names)
        return found
    if not isinstance(average, Mapping):
        _refuse("finalize(model=...)", average, "it is no average that is known")
    found = {plain_name(str(name)): each for name, each in average.items() if isinstance(each, Tensor)}
    if _missing(found, names):
        return {name.removeprefix("module."): each for name, each in found.items()}
    return found


def _missing(found: Mapping[str, Tensor], names: Iterable[str]) -> bool:
    return any(name not in found for name in names)


def _refuse(where: str, average: Any, wrong: str) -> NoReturn:
    raise PlanError(where=where, given=type(average).__name__, wrong=wrong, fix=_KNOWN)
