"""Finds every weight of a model: its names, its layers and the axis of its inputs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import nn

from nmlearn.errors import PlanError
from nmlearn.model import layers
from nmlearn.model import peft_names as peft
from nmlearn.model.names import matches, plain_name, unwrap


@dataclass(frozen=True)
class Found:
    """A parameter of two or more dimensions and where it was found first.

    ``called`` is what rules may call it: its names, and those it had before PEFT. ``inside`` are the same of the place
    of :func:`nmlearn.model.peft_names.places` that it is in, and ``aside`` why no pattern is meant for that.
    """

    names: tuple[str, ...]
    kinds: tuple[str, ...]
    axes: tuple[int | str, ...]
    parameter: nn.Parameter
    owners: tuple[nn.Module, ...]
    called: tuple[str, ...]
    inside: tuple[str, ...]
    aside: str

    def meant(self, glob: str) -> bool:
        """Whether a rule is about it. One about a layer is not about the adapter that was put into the layer."""
        return any(matches(glob, name) for name in self.called) and not any(matches(glob, name) for name in self.inside)


def find(model: nn.Module) -> Iterator[Found]:
    """Every parameter of two or more dimensions once, in the model's order, with all its names."""
    by_id: dict[int, Found] = {}
    inner = unwrap(model)
    in_peft = peft.wrapped(inner)
    places = {plain_name(path): why for path, why in peft.places(inner).items()}
    for path, module in inner.named_modules(remove_duplicate=False):
        for own, parameter in module._parameters.items():
            if isinstance(parameter, nn.parameter.UninitializedParameter):
                raise PlanError(
                    where=f"{path}.{own}",
                    given="an uninitialized lazy parameter",
                    wrong="its shape is not known yet",
                    fix="run the model once before planning",
                )
            if parameter is None or parameter.dim() < 2:
                continue
            name, axis = plain_name(f"{path}.{own}" if path else own), layers.input_axis(module, own, parameter)
            called: tuple[str, ...] = (name, peft.original_name(name)) if in_peft else (name,)
            seen = by_id.get(id(parameter))
            if seen is None:
                place = peft.owner(name, places)
                inside = () if place is None else (place, peft.original_name(place))
                aside = "" if place is None else places[place]
                kind = type(module).__name__
                by_id[id(parameter)] = Found((name,), (kind,), (axis,), parameter, (module,), called, inside, aside)
            else:
                kinds = (*seen.kinds, type(module).__name__)
                names, called = (*seen.names, name), (*seen.called, *called)
                axes, owners = (*seen.axes, axis), (*seen.owners, module)
                by_id[id(parameter)] = replace(seen, names=names, called=called, kinds=kinds, axes=axes, owners=owners)
    yield from by_id.values()
