"""ONNX files of ours in OpenVINO."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import exported

openvino = pytest.importorskip("openvino", reason="needs the optional package openvino")
for package in ("onnx", "onnxscript"):
    pytest.importorskip(package, reason=f"needs the optional package {package}")

from nmlearn.integrations.onnx import export_onnx  # noqa: E402
from nmlearn.integrations.onnx_runtime import difference  # noqa: E402


@pytest.mark.parametrize(("kind", "pattern"), list(zip(exported.MODELS, exported.PATTERNS, strict=True)))
def test_same_outputs(kind: str, pattern: str, tmp_path: Path) -> None:
    model, inputs = exported.MODELS[kind](pattern)
    export_onnx(model, inputs, tmp_path / "model.onnx", dynamic_batch=True)
    # Left alone, OpenVINO computes in bfloat16 where the processor has it.
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = openvino.Core().compile_model(tmp_path / "model.onnx", "CPU", settings)
    for batch in (inputs, inputs[:1]):
        found = [torch.from_numpy(output) for output in compiled([batch.numpy()]).values()]
        with torch.no_grad():
            apart = difference([model.eval()(batch)], found)
        assert apart.relative < 1e-3 and apart.absolute < 1e-3
