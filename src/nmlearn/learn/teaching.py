"""The teacher of a distillation: a network of the user's, and how any teacher is run on what its student was given."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nmlearn.errors import ConfigError, StateError
from nmlearn.learn.running import reached, until_reached
from nmlearn.learn.states import equal
from nmlearn.learn.watching import Call
from nmlearn.model import example
from nmlearn.model.names import unwrap

# What only serves to compute a loss, by the names that transformers gives it.
LABELS = {"labels", "start_positions", "end_positions", "next_sentence_label", "num_items_in_batch"}


def run(teacher: nn.Module, modules: Mapping[str, nn.Module], call: Call, whole: bool) -> Call:
    """What a teacher makes of a call of its student; in evaluation mode, without gradients, and as it was afterwards.

    Args:
        teacher: wrappers are looked through.
        modules: of it, those to be compared, by the student's names.
        call: its labels (:data:`LABELS`) are left out, and its autocast is used.
        whole: whether the output is wanted too. Else the teacher stops when these modules have been called as often
            as in the student's call.

    Raises:
        ConfigError: its forward does not take the student's arguments.
    """
    seen, (kind, enabled, dtype) = Call(), call.autocast
    kwargs = {name: value for name, value in call.kwargs.items() if name not in LABELS}
    teacher = unwrap(teacher)

    def keeper(name: str) -> Any:
        def keep(module: nn.Module, args: Any, output: Any) -> None:
            seen.outputs[name] = output
            seen.calls += 1
            if seen.calls == call.calls and not whole:
                reached()

        return keep

    hooks = [module.register_forward_hook(keeper(name)) for name, module in modules.items()]
    try:
        with example.quiet(teacher), torch.autocast(kind, dtype, enabled):
            seen.output = until_reached(lambda: teacher(*call.args, **kwargs))
    except TypeError as error:
        given, fix = example.said((call.args, kwargs)), "give a teacher that takes the student's arguments, or wrap it"
        raise ConfigError(where="teacher", given=given, wrong=f"its forward said: {error}", fix=fix) from error
    finally:
        for hook in hooks:
            hook.remove()
    return seen


class Given:
    """A network of the user's, as a teacher.

    Args:
        model: wrappers are looked through when it is run.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._digest = ""

    def ready(self, model: nn.Module) -> None:
        """Nothing is to be done before it is run."""

    def state_dict(self, model: nn.Module) -> dict[str, Any]:
        """Under "digest" the SHA-256 of its parameters and buffers with their names, types and shapes."""
        self._digest = self._digest or _digest(unwrap(self.model))
        return {"digest": self._digest}

    def load_state_dict(self, model: nn.Module, saved: Mapping[str, Any]) -> None:
        """Check that it is the teacher of the run that saved.

        Raises:
            StateError: it is not.
        """
        if not equal(saved.get("digest"), self.state_dict(model)["digest"]):
            given, fix = type(unwrap(self.model)).__name__, "resume with the teacher of the run that saved it"
            raise StateError(where="teacher", given=given, wrong="the state was saved with another teacher", fix=fix)


def _digest(model: nn.Module) -> str:
    found = hashlib.sha256()
    for name, value in model.state_dict().items():
        if isinstance(value, Tensor):
            found.update(f"{name} {value.dtype} {list(value.shape)}".encode())
            found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
