"""Finalized models as packages of torch.export and AOTInductor, loaded and run from Python."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import exported

Maker = Callable[[], tuple[nn.Module, Tensor]]


def ordinary(kind: str, pattern: str) -> Maker:
    """Makes an ordinary finalized model, dense with its zeros."""
    return lambda: exported.MODELS[kind](pattern)


# A maker of a model that should be exported, with an example of its inputs; further ones join this list.
MAKERS: dict[str, Maker] = {
    f"{kind}-{pattern}": ordinary(kind, pattern)
    for kind, pattern in zip(exported.MODELS, exported.PATTERNS, strict=True)
}


@pytest.mark.parametrize("name", MAKERS)
def test_export_saved_and_loaded(name: str, tmp_path: Path) -> None:
    model, inputs = MAKERS[name]()
    model.eval()
    torch.export.save(torch.export.export(model, (inputs,)), tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2")
    with torch.no_grad():
        torch.testing.assert_close(loaded.module()(inputs), model(inputs))
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict[key], value), key  # zeros and all


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="AOTInductor compiles with g++, which is not installed")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("name", MAKERS)
def test_compiled_ahead_of_time(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    model, inputs = MAKERS[name]()
    model.eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    with torch.no_grad():
        program = torch.export.export(model, (inputs,), dynamic_shapes=({0: batch},))
        package = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "model.pt2"))
        loaded = torch._inductor.aoti_load_package(package)
        for size in (len(inputs), 5):
            some = inputs[torch.arange(size) % len(inputs)]
            torch.testing.assert_close(loaded(some), model(some), rtol=1e-4, atol=1e-5)
