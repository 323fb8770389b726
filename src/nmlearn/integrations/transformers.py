"""Hugging Face's transformers: a callback for its Trainer, :class:`NMCallback`, and packed models.

A packed model is a folder that ``from_pretrained`` reads:

    from nmlearn.integrations.transformers import save_packed   # importing it registers the reader

    save_packed(model, "folder")
    model = AutoModel.from_pretrained("folder")

The loaded model is ordinary: dense with its zeros, and equal bit for bit to the saved one except for the sign of zeros.
It trains, and its ``save_pretrained`` writes an ordinary folder. For transformers 5; see docs/huggingface.md.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from nmlearn.errors import ConfigError, FormatError, StateError
from nmlearn.files import model_file
from nmlearn.files.atomic import explained
from nmlearn.files.tensors import packed_layers, plain_state
from nmlearn.integrations import torchvision
from nmlearn.model import peft_names as adapters
from nmlearn.model.moving import warn_of_moving
from nmlearn.model.names import unwrap
from nmlearn.model.plan import Rule

if TYPE_CHECKING:
    from nmlearn.integrations.transformers_trainer import NMCallback as NMCallback

torchvision.load()  # before transformers imports a model: most of them need it where it is installed

METHOD = "nmlearn"  # quant_method in config.json, by which transformers finds the reader
WEIGHTS = "model.safetensors"
_ONE_FILE = 1 << 60  # bytes of a shard


def save_packed(model: Any, directory: str | os.PathLike[str], patterns: Mapping[str, Rule] | None = None) -> None:
    """Write the folder of ``model.save_pretrained`` with its weights packed.

    Between its two steps the folder contains dense weights under their usual name, which any reader understands.

    Args:
        model: a ``PreTrainedModel``, accelerated or not; wrappers are looked through.
        directory: the folder; created if missing.
        patterns: as for :func:`nmlearn.save`, by the names in the file, which for some models are not the modules'.

    Raises:
        ConfigError: the model is quantized already, or has PEFT adapters.
        StateError: an accelerated layer whose weight is not recoverable; nothing is written.
        ViolationError, PatternError, PlanError: those of :func:`nmlearn.save`; the folder is then dense.
        WriteError: the system refuses the folder or a file in it.
    """
    model, folder = unwrap(model), Path(directory)
    if adapters.wrapped(model):
        wrong, fix = (
            "it has PEFT adapters",
            "merge them first (docs/peft.md), or save only them: model.save_pretrained",
        )
        raise ConfigError(where="save_packed", given=type(model).__name__, wrong=wrong, fix=fix)
    if getattr(model.config, "quantization_config", None) is not None:
        given = type(model.config.quantization_config).__name__
        wrong = "its weights are stored in the format of another quantization, which cannot be packed"
        raise ConfigError(where="save_packed", given=given, wrong=wrong, fix="call model.dequantize() first")
    warn_of_moving(model.parameters())
    # save_pretrained itself would refuse a layer of an accelerated model when a part of the folder is written.
    state = plain_state(model) if packed_layers(model) else None
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(folder, max_shard_size=_ONE_FILE, state_dict=state)
        config = type(model.config).from_pretrained(folder)  # as written: with its architecture and type
        config.quantization_config = {"quant_method": METHOD}
        config.save_pretrained(folder)
    model_file.convert(folder / WEIGHTS, folder / WEIGHTS, patterns=patterns)


@register_quantization_config(METHOD)
class PackedConfig(QuantizationConfigMixin):
    """What marks a packed folder in config.json. The file itself describes its weights."""

    dequantize = True  # tells transformers to forget about quantization once the weights are loaded

    def __init__(self, quant_method: str = METHOD) -> None:
        self.quant_method = quant_method


@register_quantizer(METHOD)
class PackedReader(HfQuantizer):
    """Unpacks the file into a temporary dense one, which transformers then loads like any other.

    So transformers itself handles renamed and merged weights, types, devices and ties, and every checksum is verified
    before a weight is used.
    """

    requires_calibration = True  # a dense model cannot be packed by loading it

    def validate_environment(self, *args: Any, device_map: Any = None, **kwargs: Any) -> None:
        """Refuse to keep weights on disk: there they are packed.

        Raises:
            ConfigError: the device map names the disk.
        """
        places = device_map.values() if isinstance(device_map, dict) else [device_map]
        if "disk" in places:
            wrong = "weights that stay on disk would stay packed"
            raise ConfigError(where="device_map", given="disk", wrong=wrong, fix="unpack the folder: nmlearn unpack")

    def _process_model_before_weight_loading(
        self, model: Any, checkpoint_files: list[str] | None = None, **kwargs: Any
    ) -> None:
        files = checkpoint_files or []
        if len(files) != 1 or not files[0].endswith(".safetensors"):
            raise FormatError(
                where=str(Path(files[0]).parent) if files else METHOD,
                given=f"{len(files)} files of weights",
                wrong=f"a packed model is one file, {WEIGHTS}",
                fix='write it with save_packed, or remove "quantization_config" from config.json if nothing is packed',
            )
        folder = tempfile.mkdtemp(prefix="nmlearn-")
        self._forget = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        dense = Path(folder) / WEIGHTS
        model_file.convert(files[0], dense, packed=False)
        # transformers reads from this very list next; if it did not, the operation below would be reached.
        checkpoint_files[:] = [str(dense)]  # type: ignore[index]

    def get_weight_conversions(self) -> list[Any]:
        """An operation that refuses packed tensors: without it they would be skipped, and weights left random."""
        from transformers.core_model_loading import ConversionOps, WeightConverter

        class Refuse(ConversionOps):
            def convert(self, *args: Any, **kwargs: Any) -> Any:
                fix = "use a version that nmlearn was tested with, or unpack the folder: nmlearn unpack"
                wrong = "this version of transformers read the packed file itself"
                raise StateError(where=METHOD, given="packed tensors", wrong=wrong, fix=fix)

        return [WeightConverter([".nm_values", ".nm_index"], "", [Refuse()])]

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        # The weights may be views of the mapped temporary file: copies release its disk space.
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.device.type == "cpu":
                tensor.data = tensor.data.clone()
        self._forget()
        return model

    def is_serializable(self) -> bool:
        """True: the loaded model is ordinary."""
        return True

    @property
    def is_trainable(self) -> bool:
        """True: the loaded model is ordinary."""
        return True


def __getattr__(name: str) -> Any:
    """The callback, imported on first use: importing the Trainer takes seconds."""
    if name != "NMCallback":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from nmlearn.integrations.transformers_trainer import NMCallback

    return NMCallback
