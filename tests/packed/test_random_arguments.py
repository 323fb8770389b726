"""Every operator with random arguments: the right answer or an error of nmlearn, never a crash (`make sanitize`)."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import operands
from nmlearn.errors import NMLearnError
from nmlearn.native import library as native
from nmlearn.native import removal, training
from nmlearn.packed.kernels import calls, triton_decode

# Nothing between 3 and 2^31, which would be images of terabytes: whether there is memory for those, torch says.
INTS = st.sampled_from([-(2**63), -(2**61), -(2**31), -1, 0, 1, 2, 3, 2**31, 2**32, 2**61, 2**63 - 1])
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int8, torch.uint8, torch.int32,
          torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn]  # fmt: skip
NAMES = {
    operator.split("::")[1] for operator in torch._C._dispatch_get_all_op_names() if operator.startswith("nmlearn::")
}


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    shape = draw(st.lists(st.sampled_from([0, 1, 2, 3, 4, 16, 32]), max_size=4))
    x = torch.randint(-9, 9, shape).to(draw(st.sampled_from(DTYPES)))
    return x.mT if len(shape) > 1 and draw(st.booleans()) else x


def packed(draw: st.DrawFn) -> dict[str, Any]:
    layout, dtype = (
        draw(st.sampled_from(["rows", "tokens", "bytes"])),
        draw(st.sampled_from([torch.float32, torch.bfloat16])),
    )
    linear, side = draw(st.booleans()), 1 if layout == "bytes" else 3
    call = (
        operands.linear("2:4", layout, dtype=dtype)
        if linear
        else operands.conv("2:4", layout, (side, side), dtype=dtype)
    )
    layer, side = call.layer, 1 if linear else side
    places = {f"{name}_{d}": v for name, v in (("kernel", side), ("stride", 1)) for d in "hw"}
    places |= {f"{name}_{d}": v for name, v in (("padding", 0), ("dilation", 1)) for d in "hw"}
    weight = {"values": layer.values, "index": layer.index, "scale": layer.scale, "bias": layer.bias}
    sizes = {"n": 2, "m": 4, "rows": layer.rows, "groups": 1, "images": not linear}
    return {"x": call.x, **weight, "residual": call.residual, **sizes, **places, "layout": layout, "activation": "relu"}


def decode_linear(draw: st.DrawFn) -> dict[str, Any]:
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
    values, index = triton_decode.pack(operands.sparse((16, 32), "2:4", dtype=dtype), "2:4")
    x, bias = torch.randn(draw(st.sampled_from([0, 1, 65])), 32, dtype=dtype), torch.randn(16, dtype=dtype)
    return {"x": x, "values": values, "index": index, "bias": bias, "n": 2, "m": 4, "rows": 16}


def semi_structured_linear(draw: st.DrawFn) -> dict[str, Any]:
    x, values = torch.randn(8, 64, dtype=torch.bfloat16), torch.randn(32, 32, dtype=torch.bfloat16)
    backend = draw(st.sampled_from(["cutlass", "cusparselt", "other"]))
    meta = torch.zeros(32, 4, dtype=torch.int16)
    return {"x": x, "values": values, "meta": meta, "bias": None, "rows": 32, "backend": backend, "algorithm": 0}


def test_all_operators_are_here() -> None:
    assert {"packed", "decode_linear", "semi_structured_linear"} == NAMES


def changed(draw: st.DrawFn, arguments: dict[str, Any]) -> set[str]:
    """Gives some of the arguments, one to four, other values."""
    names = draw(st.sets(st.sampled_from(sorted(arguments)), min_size=1, max_size=4))
    for name in names:
        old = arguments[name]
        if isinstance(old, bool):
            arguments[name] = not old
        elif isinstance(old, int):
            arguments[name] = draw(INTS)
        elif isinstance(old, str):
            arguments[name] = draw(st.sampled_from(["rows", "tokens", "bytes", "gelu", "none", "cutlass", ""]))
        elif isinstance(old, torch.Tensor) and draw(st.booleans()):
            arguments[name] = torch.randint(-99, 99, old.shape).to(old.dtype)  # an index is trusted, whatever its bits
        else:
            arguments[name] = draw(tensors())
    return names


@pytest.mark.parametrize("maker", [packed, decode_linear, semi_structured_linear], ids=lambda maker: maker.__name__)
@pytest.mark.parametrize("device", ["cpu", "meta"])
@given(st.data())
def test_random_arguments(maker: Any, device: str, data: st.DataObject) -> None:
    arguments = maker(data.draw)
    names = changed(data.draw, arguments)
    arguments = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}
    operator = getattr(torch.ops.nmlearn, maker.__name__)
    try:
        y = operator(**arguments)
    except NMLearnError as error:
        assert error.given
        return
    assert y.dtype == arguments["x"].dtype
    if maker is packed and device == "cpu" and not names & {"index", "values", "n", "m"}:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(native, "library", lambda: None)
            patch.setattr(calls, "_CALLS", {})
            torch.testing.assert_close(
                y, operator(**arguments), rtol=0.05, atol=0.05 * float(y.abs().max() if y.numel() else 0)
            )


@given(st.data())
def test_random_tensors_for_the_training_passes(data: st.DataObject) -> None:
    """They do what they can, and leave the rest to torch."""
    some = [data.draw(tensors()) for _ in range(5)]
    score, momentum, grad, weight, keep = some if data.draw(st.booleans()) else [some[0].clone() for _ in some]
    settings = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.0}
    assert training.score_step_([score], [momentum], [grad], [weight], **settings) in ([], [0])
    own = training.WeightStep([momentum], [keep], 0.9, 0.0)
    assert training.weight_step_([grad], [weight], own, lr=0.1) in ([], [0])
    assert training.clear_(weight, keep) in (True, False)


@given(st.data())
def test_random_tensors_for_the_removal(data: st.DataObject) -> None:
    groups = data.draw(st.sampled_from([0, 1, 3, 70]))
    table = torch.tensor([[1, 1, 0, 0], [1, 0, 1, 0], [0, 1, 1, 0]])
    alive, kept = torch.rand(groups, 3) < 0.7, torch.zeros(groups, 4, dtype=torch.bool)
    scores = data.draw(st.one_of(tensors(), st.just(torch.randn(groups, 4)))) if groups else torch.zeros(0, 4)
    survivors = data.draw(INTS)
    expected = alive.sum(-1).clamp(max=survivors)
    if removal.combinations_(alive, scores, table, survivors, kept):
        assert survivors >= 0
        assert torch.equal(alive.sum(-1), expected)
    else:
        assert not kept.any()
