"""What every packed layer shares with the dense layer whose place it takes."""

from __future__ import annotations

import sys
from typing import Any

from torch import Tensor, nn

from nmlearn.errors import KernelError

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

    It has the public attributes of the dense layer, which the code of models reads. Its state dict has the packed
    buffers, for this model or a copy of it. What ``save_pretrained`` of transformers and ``save_model`` of accelerate
    write is loaded into plain models: there the state is the dense layer's.
    """

    bias: Tensor | None

    @property
    def weight(self) -> Tensor:
        """The dense weight that it computes with, unpacked whenever it is read; missing where it cannot be unpacked."""
        return self.dense_weight()  # type: ignore[operator,no-any-return]

    def dense_state(self, name: str) -> dict[str, Tensor]:
        """The state of the dense layer, "weight" and perhaps "bias": what :func:`nmlearn.save` stores.

        Args:
            name: the weight's name, for errors.

        Raises:
            StateError: the weight of the dense layer cannot be recovered.
        """
        return {"weight": self.weight} | ({} if self.bias is None else {"bias": self.bias})

    def register_parameter(self, name: str, param: Any) -> None:
        """Refuse a parameter, as one that is set for the weight: the layer would not compute with it.

        Raises:
            KernelError: always.
        """
        wrong, fix = "its weight is packed", "change the dense model, then accelerate it again"
        raise KernelError(where=type(self).__name__, given=f"a parameter for {name!r}", wrong=wrong, fix=fix)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        if saved_for_plain_models():
            state = self.dense_state(f"{prefix}weight")
            destination.update({prefix + key: tensor for key, tensor in state.items()})
        else:
            super()._save_to_state_dict(destination, prefix, keep_vars)


class Conv2dReplacement(Replacement):
    """What all convolutions with a packed weight have alike."""

    padding_mode, transposed, output_padding = "zeros", False, (0, 0)


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
