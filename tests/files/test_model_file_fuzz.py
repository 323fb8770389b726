"""Mutated files: an error that says so, or the right weights; no crash, hang, huge allocation or wrong weight."""

from __future__ import annotations

import random
import resource
import sys
from pathlib import Path

import pytest
import torch

import nmlearn as nm
from mutations import damage, forge, join, lie, split
from nmlearn.errors import FormatError
from packed_weights import same_bits, sparse_bits


def original() -> dict[str, torch.Tensor]:
    """Weights of several patterns, types and axes, plain tensors of several types, and a tie."""
    state = {"bias": torch.arange(5.0), "steps": torch.tensor(3), "flags": torch.tensor([True, False, True])}
    for i, (text, shape, axis, dtype) in enumerate(
        [("2:4", (4, 8), 1, torch.float16), ("1:16", (3, 16, 2, 2), 1, torch.float32),
         ("3:6", (12, 2), 0, torch.bfloat16), ("5:9", (2, 9), 1, torch.float8_e4m3fn)]
    ):  # fmt: skip
        state[f"layers.{i}"] = sparse_bits(shape, nm.Grouping(nm.Pattern(text), axis), dtype, seed=i, fewer=0.1)
    return state | {"tied": state["layers.0"]}


def write(path: Path, packed: bool = True) -> bytes:
    patterns = {"layers.2": nm.Grouping(nm.Pattern("3:6"), 0), "layers.3": "5:9"}
    nm.save(original(), path, packed=packed, patterns=patterns if packed else None)
    return path.read_bytes()


def outcome(path: Path, raw: bytes) -> dict[str, torch.Tensor] | None:
    """What loading gives, None for a FormatError; any other exception is the test's failure."""
    with open(path, "r+b" if path.exists() else "wb") as file:  # creating a new file takes longer than all the rest
        file.write(raw)
        file.truncate()
    try:
        return nm.load(path)
    except FormatError as error:
        assert error.where.startswith(str(path)) and error.wrong and error.fix
        return None


def right(found: dict[str, torch.Tensor]) -> bool:
    state = original()
    return found.keys() == state.keys() and all(same_bits(found[name], state[name]) for name in state)


def peak() -> int:
    """The most memory this process ever had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def check(tmp_path: Path, count: int) -> None:
    packed, dense = write(tmp_path / "packed"), write(tmp_path / "dense", packed=False)
    path, before, rng = tmp_path / "mutated", peak(), random.Random(count)
    noticed = dict.fromkeys(("damage", "lie", "forge", "dense"), 0)
    for i in range(count):
        mutate, raw = ((damage, packed), (lie, packed), (forge, packed), (damage, dense))[i % 4]
        kind = "dense" if raw is dense else mutate.__name__
        mutated = mutate(raw, rng)
        found = outcome(path, mutated)
        noticed[kind] += found is None
        # A dense file has no checksums, and a forgery has right ones: there, other weights are what the file says.
        if found is not None and kind in ("damage", "lie"):
            assert right(found), f"mutation {i}"
        if found is not None:
            assert sum(tensor.nbytes for tensor in found.values()) <= 64 * len(mutated)
    assert noticed["damage"] > 0.24 * count and noticed["lie"] > 0.24 * count, noticed
    assert noticed["forge"] > 0.1 * count, noticed
    assert peak() - before < 100 << 20


def test_mutations(tmp_path: Path) -> None:
    check(tmp_path, 3_000)


@pytest.mark.slow
def test_many_mutations(tmp_path: Path) -> None:
    check(tmp_path, 100_000)


def test_every_truncation_and_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    raw = write(tmp_path / "packed")
    assert right(nm.load(tmp_path / "packed"))
    assert split(join(*split(raw))) == split(raw)
    for size in [*range(0, len(raw), 7), len(raw) - 1]:
        assert outcome(tmp_path / "mutated", raw[:size]) is None
    for place in range(0, len(raw), 3):
        mutated = bytearray(raw)
        mutated[place] ^= 1 << place % 8
        assert outcome(tmp_path / "mutated", bytes(mutated)) is None, f"byte {place}"
