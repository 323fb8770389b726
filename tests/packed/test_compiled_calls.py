"""The packed operators inside torch.compile, torch.export and AOTInductor, and under torch.library.opcheck."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import operands
from nmlearn.native import library as native
from nmlearn.packed import kernels
from nmlearn.packed.modules import PackedConv2d

CALLS = {
    "linear rows": lambda: operands.linear("2:4", "rows", activation="gelu"),
    "linear tokens": lambda: operands.linear("1:8", "tokens", size=(2, 9), residual=False),
    "linear int8 bfloat16": lambda: operands.linear("1:4", "rows", int8=True, dtype=torch.bfloat16, bias=False),
    "linear bytes": lambda: operands.linear("2:4", "bytes", activation="silu"),
    "linear bytes bfloat16": lambda: operands.linear("1:16", "bytes", size=(2, 9), dtype=torch.bfloat16, bias=False),
    "conv bytes": lambda: operands.conv("1:8", "bytes", (1, 1), first=True),
    "conv rows": lambda: operands.conv("2:4", "rows", padding=(1, 1), groups=2, activation="relu"),
    "conv tokens": lambda: operands.conv("1:4", "tokens", stride=(2, 1), first=True),
    "conv 1x1": lambda: operands.conv("1:4", "tokens", (1, 1), bias=False, residual=False),
}


def arguments(call: operands.Call) -> tuple[object, ...]:
    layer = call.layer
    packed = (call.x, layer.values, layer.index, layer.scale, layer.bias, call.residual)
    sizes = (layer.pattern.n, layer.pattern.m, layer.rows, layer.form.groups)
    images = isinstance(layer, PackedConv2d)
    places = (*layer.form.kernel, *layer.stride, *layer.padding, *layer.dilation) if images else kernels.LINEAR
    return (*packed, *sizes, images, *places, layer.layout, layer.activation)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("name", CALLS)
def test_opcheck(name: str) -> None:
    call = CALLS[name]()
    torch.library.opcheck(torch.ops.nmlearn.packed.default, arguments(call))


@pytest.mark.parametrize("name", CALLS)
def test_fake_has_the_strides_of_the_real(name: str) -> None:
    call = CALLS[name]()
    operator = torch.ops.nmlearn.packed
    real = operator(*arguments(call))
    fake = operator(*(a.to("meta") if isinstance(a, Tensor) else a for a in arguments(call)))
    assert (fake.shape, fake.stride(), fake.dtype) == (real.shape, real.stride(), real.dtype)


class Small(nn.Module):
    """A convolution with a residual, and a linear layer."""

    def __init__(self, layout: str) -> None:
        super().__init__()
        self.layout = layout
        first = operands.conv("2:4", layout, padding=(1, 1), rows=20, channels=20, activation="relu").layer
        second = operands.linear("1:4", layout, 10, 20).layer
        self.conv, self.linear = first, second

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(self.conv(x, x).mean((2, 3)) * 2)
        return y


@pytest.fixture(autouse=True)
def _forget_compiled_code() -> None:
    torch._dynamo.reset()


def model_and_images(layout: str) -> tuple[nn.Module, Tensor]:
    return Small(layout).eval(), torch.randn(3, 20, 6, 7)


@pytest.mark.parametrize("layout", operands.LAYOUTS)
def test_compiled_eagerly(layout: str) -> None:
    """One graph, no recompilation for other batch sizes but the dynamic one; without inductor, which is slow."""
    model, images = model_and_images(layout)
    with torch.inference_mode():
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        for batch in (3, 2, 1):
            assert torch.equal(compiled(images[:batch]), model(images[:batch]))


@pytest.mark.parametrize("layout", operands.LAYOUTS)
def test_exported(layout: str, tmp_path: Path) -> None:
    model, images = model_and_images(layout)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (images,), dynamic_shapes=({0: batch},))
    torch.export.save(program, tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    with torch.no_grad():
        for some in (images, images[:2], images.repeat(3, 1, 1, 1)):
            assert torch.equal(loaded(some), model(some))


compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="inductor compiles with g++, which is not installed")
quietly = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


@quietly
@compiler
@pytest.mark.slow
@pytest.mark.compiles
@pytest.mark.parametrize("layout", operands.LAYOUTS)
def test_compiled(layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    model, images = model_and_images(layout)
    with torch.inference_mode():
        compiled = torch.compile(model, fullgraph=True)
        for some in (images, images.to(memory_format=torch.channels_last), images[:2]):
            torch.testing.assert_close(compiled(some), model(some))


@quietly
@compiler
@pytest.mark.slow
@pytest.mark.compiles
@pytest.mark.parametrize("layout", operands.LAYOUTS)
def test_compiled_ahead_of_time(layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    model, images = model_and_images(layout)
    with torch.no_grad():
        program = torch.export.export(model, (images,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},))
        package = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "model.pt2"))
        loaded = torch._inductor.aoti_load_package(package)
        for some in (images, images[:2]):
            torch.testing.assert_close(loaded(some), model(some))


SCRIPT = "import nmlearn.native.library as native; print(repr(native.isa()))"


@pytest.mark.parametrize(
    ("variables", "answer"),
    [
        ({"NMLEARN_ISA": "portable"}, "'portable'"),
        ({"NMLEARN_ISA": "mmx"}, "''"),
        ({"NMLEARN_KERNELS": "none.so"}, "''"),
    ],
)
def test_environment_variables(variables: dict[str, str], answer: str) -> None:
    if native.library() is None:
        pytest.skip("the library is not built (make kernels)")
    run = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(run, env=os.environ | variables, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == answer
