"""Output layers: those that are named so, or else a guess that says it is one."""

import pytest
from torch import nn

import nmlearn as nm

NAMED = "output layer: dense by default, as in the paper"
GUESS = f"{NAMED} (a guess: give a rule)"


def outputs(model):
    """The reasons of the layers that are taken for output layers."""
    rows = nm.Sparsifier(model, nm.LBC("2:4")).plan.rows
    return {row.name.removesuffix(".weight"): row.reason for row in rows if row.reason.startswith("output layer")}


def net(**layers):
    """A model of named layers, in this order, after a first convolution."""
    return nn.ModuleDict({"stem": nn.Conv2d(3, 8, 1)} | layers)


def conv(outputs=8):
    return nn.Conv2d(8, outputs, 1)


def linear(outputs=8):
    return nn.Linear(8, outputs)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (net(time=linear(), down=conv(), up=nn.ConvTranspose2d(8, 8, 2), out=conv(3)), {"out": GUESS}),  # a U-Net
        (net(time=linear(), conv_out=conv(3), down=conv(), up=conv()), {"conv_out": NAMED}),
        (net(classifier=nn.Sequential(conv(), conv(5)), aux_classifier=conv(5)), {"classifier.1": NAMED}),
        (net(latent=linear(), up=conv(), pixels=nn.ConvTranspose2d(8, 3, 2)), {"pixels": GUESS}),  # a GAN
        (net(attention=linear(), body=conv(), classes=conv(5)), {"classes": GUESS}),
        (net(body=linear(), fc=linear(5)), {"fc": NAMED}),
        (net(fc=linear(), body=linear(5)), {"body": GUESS}),
        (net(body=linear(), head=linear(5), head_dist=linear(5)), {"head": NAMED, "head_dist": NAMED}),
        (net(cls_score=linear(5), bbox_pred=linear(20), rest=conv()), {"cls_score": NAMED, "bbox_pred": NAMED}),
        (net(body=linear(), out=linear(5), gate=linear(1)), {"out": GUESS}),
        (net(body=linear(), aggregate=linear(2)), {"aggregate": GUESS}),  # two classes
        (net(blocks=nn.ModuleList(net(a=conv(), out_proj=linear()) for _ in range(2))), {}),
        (nn.ModuleDict({"only": nn.Conv2d(8, 8, 1)}), {}),
    ],
)
def test_output_layers(model, expected):
    assert outputs(model) == expected


def test_a_model_that_is_one_layer():
    assert list(outputs(nn.Linear(8, 8))) == ["weight"]
    assert outputs(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2))) == {"1": GUESS}


@pytest.mark.parametrize("inside", [False, True])
def test_no_other_layer_is_taken_where_the_head_is_tied_to_an_embedding(inside):
    table, tied = nn.Embedding(16, 8), nn.Linear(8, 16, bias=False)
    tied.weight = table.weight
    head = nn.ModuleDict({"dense": linear(), "decoder": tied}) if inside else tied
    model = nn.ModuleDict({"table": table, "first": linear(), "last": linear(), "lm_head": head})
    assert outputs(model) == {}
    row = nm.Sparsifier(model, nm.LBC("2:4")).plan.rows[0]
    assert row.pattern is None and row.reason.startswith("tied with lm_head")


def test_two_embeddings_of_one_weight_are_no_head():
    model = nn.ModuleDict({"a": nn.Embedding(16, 8), "b": nn.Embedding(16, 8), "c": linear(), "d": linear()})
    model["b"].weight = model["a"].weight
    assert outputs(model) == {"d": GUESS}
