"""What is collected of inputs: sums that are those of the layers, and reasons where there are none."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nmlearn as nm
from calibration_models import Attends, ByInputs, Language, Logged, Readers, chain, normal, tokens
from nmlearn.errors import PlanError
from nmlearn.learn import collecting
from nmlearn.maths.inputs import Inputs, to_rows

GEOMETRIES = {
    "1-D": (nn.Conv1d(8, 12, 3), (8, 11)),
    "1-D, same, an even kernel": (nn.Conv1d(8, 12, 4, padding="same", dilation=3), (8, 11)),
    "2-D": (nn.Conv2d(8, 12, 3, padding=1), (8, 6, 7)),
    "2-D, uneven": (nn.Conv2d(8, 12, (3, 2), stride=(2, 1), padding=(2, 1), dilation=(1, 2)), (8, 9, 8)),
    "2-D, groups": (nn.Conv2d(16, 12, 3, stride=2, groups=2), (16, 7, 8)),
    "2-D, valid": (nn.Conv2d(8, 12, 3, padding="valid"), (8, 6, 7)),
    "2-D, reflected": (nn.Conv2d(8, 12, 3, padding=2, padding_mode="reflect"), (8, 6, 7)),
    "2-D, circular": (nn.Conv2d(8, 12, (3, 5), padding=(0, 2), padding_mode="circular"), (8, 6, 7)),
    "3-D": (nn.Conv3d(4, 6, (1, 2, 3), padding=(0, 1, 2), stride=(1, 2, 1), groups=2), (4, 3, 4, 5)),
    "linear": (nn.Linear(8, 12), (3, 5, 8)),
}


# The sums


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("piece", [1, 300, 1 << 20])
def test_rows_times_inputs_are_the_outputs(name: str, piece: int) -> None:
    """For every geometry, and the sums are those of an explicit derivation in float64."""
    layer, shape = GEOMETRIES[name]
    x = normal(3, *shape)
    spatial = len(shape) - 1 if name != "linear" else 0
    groups = getattr(layer, "groups", 1)
    views = list(collecting.rows_of(layer, x, piece))
    parts = [p for v in views for p in collecting.pieces(v, None, v.dim() - 2 - spatial, piece)]
    x_gtk = torch.cat(parts, 1)
    if spatial and piece != 300:  # examples are padded one by one, or at once
        assert len(views) == (3 if piece == 1 else 1)
    assert max(part.numel() for part in parts) <= max(piece, groups * x_gtk.shape[2])
    rows_gok = to_rows(layer.weight, nm.Grouping(nm.Pattern("1:1"), 1), groups)
    out = layer(x) - (layer.bias if not spatial else layer.bias.reshape(-1, *[1] * spatial))
    out_to = out.flatten(0, -2) if not spatial else out.movedim(1, -1).flatten(0, -2)
    torch.testing.assert_close(torch.cat(list(x_gtk @ rows_gok.mT), 1), out_to)

    row = nm.Sparsifier(nn.Sequential(layer, nn.Linear(1, 1)), nm.OneShot("1:1"), {"0": "1:1"}).plan.sparse[0]
    of = collecting.layer(row, (layer,), {})
    assert isinstance(of, collecting.Layer)
    sums = collecting.Sums(of, True, 4 * piece)
    sums.add(layer, x, None)
    got, expected = sums.inputs(), Inputs.of(x_gtk.double(), True)
    assert got.tokens == expected.tokens == x_gtk.shape[1]
    for part in ("sum_gk", "square_gk", "gram_gkk"):
        torch.testing.assert_close(getattr(got, part).double(), getattr(expected, part), rtol=1e-5, atol=1e-4)
    assert of.bytes(True) == sum(t.nbytes for t in (got.sum_gk, got.square_gk, got.gram_gkk) if t is not None)


def test_an_input_without_a_batch_and_one_layout_of_transformers() -> None:
    conv = nn.Conv2d(8, 4, 3)
    (view,) = collecting.rows_of(conv, normal(8, 5, 5), 1 << 20)
    assert view.shape == (1, 3, 3, 1, 3, 3, 8)
    pytest.importorskip("transformers")
    from transformers.pytorch_utils import Conv1D

    model = nn.Sequential(Conv1D(12, 8), nn.Linear(12, 4))
    x = normal(5, 8)
    assert torch.allclose(nm.calibrate(model, [x])["0.weight"].gram_gkk, (x.T @ x)[None], atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_sums_are_float32_or_float64(dtype: torch.dtype) -> None:
    model, x = chain(8, 8, 4).to(dtype), normal(64, 8).to(dtype)
    got = nm.calibrate(model, [x])["0.weight"].gram_gkk
    assert got is not None and got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(got[0].double(), x.double().T @ x.double(), rtol=1e-5, atol=1e-5)


def test_autocast_does_not_round_the_sums() -> None:
    model, x = chain(8, 8, 4), normal(64, 8)
    with torch.autocast("cpu", torch.bfloat16):
        got = nm.calibrate(model, [x])["0.weight"]
    assert got.gram_gkk is not None and torch.equal(got.gram_gkk, nm.calibrate(model, [x])["0.weight"].gram_gkk)


def test_sums_alone_hold_no_gram_matrix() -> None:
    x = normal(64, 8)
    got = nm.calibrate(chain(8, 8, 4), [x], needs="sums")["0.weight"]
    assert got.gram_gkk is None
    torch.testing.assert_close(got.norm_gk[0], x.norm(dim=0))
    torch.testing.assert_close(got.variance_gk[0], x.var(0, correction=0))


def test_masked_tokens_are_left_out() -> None:
    """A padded batch gives the sums of its sequences without padding."""
    model = Language()
    ids, mask = tokens(), torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    padded = nm.calibrate(model, [{"tokens": ids, "attention_mask": mask}])
    apart_ = nm.calibrate(model, [ids[:1], ids[1:, :4]])
    assert padded["layers.0.up.weight"].tokens == 10
    assert padded.keys() == apart_.keys() and len(padded) == 12
    for name, inputs in padded.items():
        torch.testing.assert_close(inputs.gram_gkk, apart_[name].gram_gkk, rtol=1e-4, atol=1e-4)


def test_a_mask_covers_flattened_tokens_and_further_dimensions() -> None:
    mask = torch.tensor([[1, 0, 1], [0, 0, 1]])
    flat = collecting.token_mask(mask, normal(6, 8))
    assert flat is not None and flat.tolist() == [True, False, True, False, False, True]
    heads = collecting.token_mask(mask, normal(2, 3, 4, 8))
    assert heads is not None and heads.shape == (2, 3, 4) and heads.sum() == 12
    assert collecting.token_mask(mask, normal(5, 8)) is None
    assert collecting.token_mask(mask[:, None], normal(2, 3, 8)) is None


def test_a_layer_in_two_places_adds_up_both() -> None:
    shared = nn.Linear(8, 8)
    model = nn.Sequential(shared, nn.ReLU(), shared, nn.Linear(8, 4))
    tied = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 4))
    tied[0].weight = tied[2].weight = shared.weight
    tied[0].bias = tied[2].bias = shared.bias
    x = normal(32, 8)
    y = F.relu(shared(x)).detach()
    for one in (model, tied):
        got = nm.calibrate(one, [x])
        assert got["0.weight"].tokens == 64 and len(got) == 1
        torch.testing.assert_close(got["0.weight"].gram_gkk, (x.T @ x + y.T @ y)[None])


# What cannot be seen


def test_what_cannot_be_seen_is_named_with_its_reason() -> None:
    seen = nm.calibrate(Readers(), [normal(2, 5, 16)])
    inside = ("linear1.weight", "linear2.weight", "self_attn.in_proj_weight", "self_attn.out_proj.weight")
    assert set(seen) == {"cross.out_proj.weight", *(f"encoder.{name}" for name in inside)}  # not in torch's fast path
    reasons = {
        "cross.in_proj_weight": "other keys",
        "rnn.weight_ih_l0": "own code",
        "up.weight": "transposed",
        "read.weight": "no batch called",
        "unused.weight": "no batch called",
        "own.weight": "Doubled.forward",
    }
    assert {name: part in seen.unseen[name] for name, part in reasons.items()} == dict.fromkeys(reasons, True)
    assert "7 unseen" in repr(seen)


def test_experts_and_other_axes_are_named() -> None:
    model = nn.Sequential(Logged(8, 8), nn.Linear(8, 4))
    assert set(nm.calibrate(model, [normal(3, 8)])) == {"0.weight"}  # its own forward was tried
    model.experts = nn.Parameter(normal(2, 8, 8))
    rules = {"experts": nm.Grouping(nm.Pattern("2:4"), 2), "0": nm.Grouping(nm.Pattern("2:4"), 0)}
    sparsifier = nm.Sparsifier(model, ByInputs("2:4"), rules)
    seen = nm.calibrate(model, [normal(3, 8)], plan=sparsifier.plan)
    assert "Sequential" in seen.unseen["experts"] and "axis 0" in seen.unseen["0.weight"]
    with pytest.raises(PlanError, match=r"experts.* and 1 more.*None"):
        sparsifier.apply([normal(3, 8)])


@pytest.mark.parametrize("batch_first", [True, False])
def test_the_projections_of_attention_are_seen(batch_first: bool) -> None:
    """By an explicit derivation, with padded keys; and where queries, keys and values have a projection each."""
    attention = nn.MultiheadAttention(16, 2, batch_first=batch_first)
    x, y = normal(3, 5, 16), normal(3, 7, 8, seed=1)
    padded = torch.zeros(3, 5, dtype=torch.bool)
    padded[0, 3:] = True
    order = (lambda a: a) if batch_first else (lambda a: a.transpose(0, 1))
    z = order(x)
    seen = nm.calibrate(Attends(attention), [(z, z, padded)])
    with torch.no_grad():
        qkv = attention.in_proj_weight @ x.mT + attention.in_proj_bias[:, None]
        q, k, v = qkv.unflatten(1, (3, 2, 8)).mT.unbind(1)
        a = F.scaled_dot_product_attention(q, k, v, ~padded[:, None, None]).transpose(1, 2).reshape(15, 16)
    torch.testing.assert_close(seen["0.out_proj.weight"].gram_gkk, (a.T @ a)[None], rtol=1e-4, atol=1e-5)
    x_tk = x.flatten(0, 1)
    torch.testing.assert_close(seen["0.in_proj_weight"].gram_gkk, (x_tk.T @ x_tk)[None], rtol=1e-4, atol=1e-5)

    separate = nn.MultiheadAttention(16, 2, kdim=8, vdim=8, batch_first=batch_first)
    seen = nm.calibrate(Attends(separate), [(z, order(y))])
    y_tk = y.flatten(0, 1)
    for name, rows in (("q", x_tk), ("k", y_tk), ("v", y_tk)):
        gram = seen[f"0.{name}_proj_weight"].gram_gkk
        torch.testing.assert_close(gram, (rows.T @ rows)[None], rtol=1e-4, atol=1e-5)
    assert seen["0.out_proj.weight"].tokens == 15
