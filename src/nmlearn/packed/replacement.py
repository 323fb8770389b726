"""What every packed layer shares with the dense layer whose place it takes."""

from __future__ import annotations

import sys
from typing import Any

from torch import Tensor, nn

# (library, function): these write a folder from which the plain model is loaded, and skip names it does not have.
_FOR_PLAIN_MODELS = {
    ("transformers", "save_pretrained"),
    ("huggingface_hub", "save_pretrained"),
    ("diffusers", "save_pretrained"),
    ("accelerate", "save_model"),
    ("accelerate", "get_state_dict"),  # to be given to save_pretrained
}
_FOR_THIS_MODEL = {("accelerate", "save_state")}  # what load_state gives back; it calls get_state_dict


class Replacement(nn.Module):
    """Base of the layers that take a dense layer's place.

    Its state dict has the packed buffers, for this model or a copy of it. What transformers' ``save_pretrained`` and
    accelerate's ``save_model`` write is loaded into plain models: there the state is the dense layer's.
    """

    bias: Tensor | None

    def dense_weight(self) -> Tensor:
        """The weight of the dense layer."""
        raise NotImplementedError

    def dense_state(self, name: str) -> dict[str, Tensor]:
        """The state of the dense layer, "weight" and perhaps "bias": what :func:`nmlearn.save` stores.

        Args:
            name: the weight's name, for errors.

        Raises:
            StateError: the weight of the dense layer cannot be recovered.
        """
        return {"weight": self.dense_weight()} | ({} if self.bias is None else {"bias": self.bias})

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        if saved_for_plain_models():
            state = self.dense_state(f"{prefix}weight")
            destination.update({prefix + key: tensor for key, tensor in state.items()})
        else:
            super()._save_to_state_dict(destination, prefix, keep_vars)


def saved_for_plain_models() -> bool:
    """Whether the state is asked for by a library that writes it for plain models."""
    frame, found = sys._getframe(1), False
    while frame is not None:
        caller = frame.f_globals.get("__name__", "").partition(".")[0], frame.f_code.co_name
        if caller in _FOR_THIS_MODEL:
            return False
        found = found or caller in _FOR_PLAIN_MODELS
        frame = frame.f_back  # type: ignore[assignment]
    return found
