"""Models as plain tensors by name, and back."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nmlearn.errors import StateError
from nmlearn.files.formats.container import METADATA, NAMES, is_text
from nmlearn.files.formats.metadata import INDEX, VALUES
from nmlearn.model.names import plain_name, unwrap


def plain_state(model: nn.Module | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a model by their plain names; of a packed layer, those of the dense layer that it replaced.

    Raises:
        StateError: something that a safetensors file cannot store, or a packed layer whose weight is not recoverable.
    """
    state = _dense_state(unwrap(model)) if isinstance(model, nn.Module) else model
    for name, tensor in state.items():
        why = _refusal(name, tensor)
        if why:
            fix = "save a state dict without it, or convert it"
            raise StateError(where=_said(name), given=_said(tensor), wrong=why, fix=fix)
    return {name: tensor.detach() for name, tensor in state.items()}


def packed_layers(model: nn.Module) -> dict[str, Any]:
    """The layers that store their weight packed, by their names in the module: they have a ``dense_state``."""
    layers = model.named_modules(remove_duplicate=False)
    return {name: layer for name, layer in layers if callable(getattr(layer, "dense_state", None))}


def _dense_state(model: nn.Module) -> dict[str, Tensor]:
    state = {plain_name(name): tensor for name, tensor in model.state_dict().items()}
    for path, layer in packed_layers(model).items():
        prefix = plain_name(path) + "." if path else ""
        for key in layer.state_dict():
            del state[prefix + key]
        state |= {prefix + key: tensor for key, tensor in layer.dense_state(prefix + "weight").items()}
    return state


def ties(state: Mapping[str, Tensor]) -> dict[str, str]:
    """The further names of tensors that have several: name -> the first name."""
    first: dict[Hashable, str] = {}
    return {name: kept for name, tensor in state.items() if (kept := first.setdefault(_identity(tensor), name)) != name}


def fill(model: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Copy tensors into a model, all or none.

    Args:
        model: wrappers are looked through.
        tensors: by plain name; a tied tensor may be given under only one of its names.
        where: the origin of the tensors, for errors.

    Raises:
        StateError: a name or a shape differs, values that the model's type does not have, an index that a packed layer
            refuses, or the model has no memory yet.
    """
    inner = unwrap(model)
    own = {plain_name(name): (name, tensor) for name, tensor in inner.state_dict().items()}
    there = {_identity(own[name][1]) for name in tensors if name in own and isinstance(own[name][1], Tensor)}
    wrong = [f"{name}: not in the model" for name in tensors if name not in own]
    for name, (_, tensor) in own.items():
        wrong += _mismatch(name, tensor, tensors, there)
    wrong = wrong or _misplaced(inner, tensors)
    if wrong:
        more = f" and {len(wrong) - 6} more" if len(wrong) > 6 else ""
        raise StateError(
            where=where,
            given=f"a {type(inner).__name__} to fill",
            wrong="; ".join(wrong[:6]) + more,
            fix="give the dense model, and accelerate it afterwards"
            if packed_layers(inner)
            else "give a model of the kind and of the types that were saved",
        )
    # Not strict: the further names of a tied tensor may be missing.
    inner.load_state_dict(of_now(inner, {own[name][0]: tensor for name, tensor in tensors.items()}), strict=False)


def load_whole(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """``load_state_dict`` of a file's tensors, of any writer; all names must match.

    Raises:
        RuntimeError: a name or a shape differs; a module with versions may raise others.
    """
    # With other names it may be an older version's, which a module can convert if nothing is said.
    same = tensors.keys() == module.state_dict().keys()
    module.load_state_dict(of_now(module, tensors) if same else dict(tensors))


def of_now(module: nn.Module, tensors: Mapping[str, Tensor]) -> OrderedDict[str, Tensor]:
    """Tensors as a state of the version that a module's own state has, for ``load_state_dict``.

    A state from a file says no versions, and a module with several (:attr:`torch.nn.Module._version`) takes it for one
    from before there were any: it converts or refuses it. Our files are of this version, by their names and shapes.
    """
    state = OrderedDict(tensors)
    state._metadata = getattr(module.state_dict(), "_metadata", OrderedDict())  # type: ignore[attr-defined]
    return state


def _misplaced(model: nn.Module, tensors: Mapping[str, Tensor]) -> list[str]:
    """What packed layers would refuse when they load: by then other layers would have changed."""
    wrong = []
    for path, layer in packed_layers(model).items():
        prefix, misplaced = plain_name(path) + "." if path else "", getattr(layer, "misplaced", lambda state: "")
        state = {key: tensors[prefix + key] for key in layer.state_dict() if prefix + key in tensors}
        if why := misplaced(state):
            wrong.append(f"{prefix}index: {why}")
    return wrong


def _mismatch(name: str, own: Any, tensors: Mapping[str, Tensor], there: set[Hashable]) -> list[str]:
    if not isinstance(own, Tensor):
        return [f"{name}: not a tensor, so our files cannot store it"]
    if name not in tensors:
        return [] if _identity(own) in there else [f"{name}: not in the file"]
    if own.is_meta:
        return [f"{name}: on the meta device, without memory (use to_empty first)"]
    if own.shape != tensors[name].shape:
        return [f"{name}: {list(own.shape)} in the model, {list(tensors[name].shape)} in the file"]
    why = _not_castable(tensors[name], own.dtype)
    return [f"{name}: {why}"] if why else []


def _not_castable(tensor: Tensor, dtype: torch.dtype) -> str:
    """Why a tensor cannot be converted to a type; empty if it can. Rounding to fewer digits is fine, among floats."""
    if tensor.dtype == dtype:
        return ""
    if tensor.is_complex() and not dtype.is_complex:
        return f"{tensor.dtype} in the file, {dtype} in the model"
    if dtype.is_complex:
        parts = torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
        lost = _lost(parts, dtype.to_real())
    else:
        lost = _lost(tensor, dtype)
    return f"{lost:,} values of {tensor.dtype} in the file that {dtype} of the model does not have" if lost else ""


def _lost(tensor: Tensor, dtype: torch.dtype) -> int:
    """How many values of a real tensor another real type does not have."""
    if tensor.is_floating_point() and dtype.is_floating_point:
        x_w, y_w = _wide(tensor), _wide(tensor.to(dtype))  # a type without infinity has its largest number instead
        lost_w = (x_w.isfinite() != y_w.isfinite()) | (x_w.isfinite() & (x_w.abs() > torch.finfo(dtype).max))
        lost_w |= (x_w <= 0) & (y_w > 0)  # a type of powers of two alone
    elif dtype.is_floating_point:
        lost_w = _inexact(tensor, tensor.to(dtype).double())
    else:
        low, high = (0, 1) if dtype == torch.bool else (torch.iinfo(dtype).min, torch.iinfo(dtype).max)
        if tensor.is_floating_point():
            x_w = tensor.double()
            lost_w = (x_w < low) | (x_w >= float(high + 1)) | (x_w != x_w.trunc())
        else:
            x_w = _as_int64(tensor)
            least = 0 if tensor.dtype == torch.uint64 else low
            lost_w = (x_w < least) | (x_w > min(high, torch.iinfo(torch.int64).max))
    return int(lost_w.sum())


def _inexact(whole: Tensor, found: Tensor) -> Tensor:
    """Where float64 numbers are not those whole ones, of up to 64 bits: bool. In halves, each of which is exact."""
    x_w = _as_int64(whole)
    upper, lower = x_w >> 32, x_w & 0xFFFFFFFF
    if whole.dtype == torch.uint64:
        upper &= 0xFFFFFFFF
    return (found - upper.double() * 2.0**32) != lower.double()


def _as_int64(whole: Tensor) -> Tensor:
    """Whole numbers as int64; those of uint64 from 2**63 on are negative."""
    return whole.view(torch.int64) if whole.dtype == torch.uint64 else whole.long()


def _wide(tensor: Tensor) -> Tensor:
    """The tensor in a type that torch compares."""
    return tensor if tensor.is_floating_point() and tensor.dtype.itemsize > 1 else tensor.double()


def _identity(tensor: Tensor) -> Hashable:
    """Equal for two tensors that are the same view of the same memory."""
    if tensor.numel() == 0 or tensor.is_meta or tensor.layout != torch.strided:
        return id(tensor)
    place = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.is_conj(), tensor.is_neg())
    return (*place, tuple(tensor.shape), tensor.stride())


def _said(given: object) -> str:
    """A name, or what stands under it, for an error."""
    if isinstance(given, Tensor):  # a nested one has no shape
        return str(given.dtype) if given.is_nested else f"{given.dtype} {list(given.shape)}"
    return given if isinstance(given, str) else type(given).__name__


def _refusal(name: Any, tensor: object) -> str:
    """Why a safetensors file cannot store it; empty if it can."""
    if not isinstance(tensor, Tensor):
        return "it is not a tensor"
    if type(tensor) not in (Tensor, nn.Parameter):
        return f"a {type(tensor).__name__} is not plain memory: gather a sharded one, dequantize a quantized one"
    if tensor.is_meta or tensor.layout != torch.strided or tensor.is_quantized or tensor.is_nested:
        return "it is not plain memory"
    if tensor.dtype not in NAMES:
        return "safetensors has no such type"
    if not is_text(name) or name == METADATA or name.endswith((VALUES, INDEX)):
        return f"a name must be text, not {METADATA}, and not end in {VALUES} or {INDEX}"
    return ""
