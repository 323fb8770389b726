"""What the callbacks need to add a distillation to the loss of a framework, which has no hook for that."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from nmlearn.errors import StateError
from nmlearn.learn.distillation import Distillation

_NONE = object()


def replace(owner: Any, name: str, wrap: Callable[[Any], Any]) -> Callable[[], None]:
    """Replace a method of this object alone.

    Args:
        wrap: is given the method, and gives the one in its place.

    Returns:
        What puts things back as they were; a second call does nothing.
    """
    own = vars(owner)
    before, now = own.get(name, _NONE), wrap(getattr(owner, name))
    own[name] = now

    def undo() -> None:
        if own.get(name) is not now:  # undone, or replaced by others
            return
        if before is _NONE:
            del own[name]
        else:
            own[name] = before

    return undo


def resume(distillation: Distillation | None, saved: Mapping[str, Any] | None, where: str) -> None:
    """Load the state of a distillation from a checkpoint.

    Args:
        saved: None in a checkpoint of training without one.
        where: the checkpoint, for errors.

    Raises:
        StateError: it was saved with a distillation and there is none now, or the other way round, or with another.
    """
    if (saved is None) != (distillation is None):
        given, was = ("none", "with") if distillation is None else ("a distillation", "without")
        fix = "resume with the settings of the run that saved it, or start new training from its model"
        raise StateError(where=where, given=given, wrong=f"the checkpoint is of training {was} a teacher", fix=fix)
    if distillation is not None and saved is not None:
        distillation.load_state_dict(saved)
