"""Weights whose masks still move: a sparsifier acts on them, and its schedule has not come to its end.

Files and acceleration ask before they take what a weight is now for what it shall be. What learns stands above them, so
it registers here.
"""

from __future__ import annotations

import gc
import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol, TypeVar

from torch import Tensor

from nmlearn.model.shards import local

Found = TypeVar("Found")


class Watched(Protocol):
    """Something that may act on weights."""

    def held(self) -> frozenset[int]:
        """The ids of the weights that it acts on."""

    def moving(self) -> Mapping[str, Tensor]:
        """The weights, by name, whose masks may still change; none once it has come to its end."""


_watched: weakref.WeakSet[Watched] = weakref.WeakSet()


def watch(watched: Watched) -> None:
    """Ask this one from now on, as long as it exists."""
    _watched.add(watched)


def watched() -> list[Watched]:
    """All that exist."""
    return list(_watched)


def lasting(find: Callable[[], Found]) -> Found:
    """What ``find`` finds among those watched, without one that is forgotten but waits in a cycle, such as that of an
    exception's traceback."""
    found = find()
    if found:
        gc.collect()
        found = find()
    return found


def moving(tensors: Iterable[Tensor]) -> list[str]:
    """The names of those weights whose masks still move that lie in the memory of one of these tensors."""
    places = {_place(tensor) for tensor in tensors if isinstance(tensor, Tensor)} - {None}
    return lasting(lambda: _found(places))


def warn_of_moving(tensors: Iterable[Tensor]) -> None:
    """Warn of a packed file, which is about to be written of these, in the middle of a schedule."""
    if names := moving(tensors):
        warnings.warn(
            f"a sparsifier is still removing values of {len(names)} of these weights, such as {names[0]}: the file has "
            "the zeros of this moment, and perhaps patterns that nobody asked for. Save after finalize(); for a "
            "checkpoint write model.state_dict() and sparsifier.state_dict() with torch.save",
            stacklevel=3,
        )


def _found(places: set[object]) -> list[str]:
    return [name for one in watched() for name, weight in one.moving().items() if _place(weight) in places]


def _place(tensor: Tensor) -> object:
    """Where its memory begins; None where it has none."""
    plain = local(tensor)
    if type(plain) is not Tensor or plain.is_meta or not plain.numel():
        return None
    return plain.device, plain.data_ptr()
