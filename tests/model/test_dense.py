"""Output layers: those that end the model on an example; without one those that are named so, or else a guess."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import executed_nets as nets
import nmlearn as nm
from executed_nets import image
from scale_ranks import run_jobs

NAMED = "output layer: dense by default, as in the paper"
GUESS = f"{NAMED} (a guess: give an example or a rule)"
SEEN = f"{NAMED} (seen on the example)"
LOST = f"{NAMED} (a guess: on the example no layer was seen to reach the model's output: give a rule)"
FIRST = "first convolution: dense by default, as in the paper"
X, IDS = torch.randn(2, 6), torch.arange(6).view(1, 6)


def outputs(model, example=None, begins="output layer"):
    """The reasons of the layers that are taken for output layers."""
    rows = nm.Sparsifier(model, nm.LBC("2:4"), example=example).plan.rows
    return {row.name.removesuffix(".weight"): row.reason for row in rows if row.reason.startswith(begins)}


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


# On an example


@pytest.mark.parametrize(
    ("model", "example", "expected"),
    [
        (nets.UNet(), (image(), torch.randn(2, 4)), {"out"}),
        (nets.Segmentation(), image(), {"main.3", "aux.2"}),
        (nets.Generator(), torch.randn(2, 16), {"pixels"}),
        (nets.AllConvolutional(), image(), {"classes"}),
        (nets.Detector(), ([*image()],), {"boxes", "scores"}),
        (nets.Proposing(), X, {"objectness", "deltas", "cls_score", "bbox_pred"}),
        (nets.TwoHeads(), X, {"heads.0.2", "heads.1.2"}),  # the same in two blocks, but both are seen
        (nets.Routed(), X, {"head"}),  # not the gate
        (nets.Language(), IDS, {"head"}),
        (nets.Language("layer"), IDS, set()),
        (nets.Language("code"), IDS, set()),
        (nets.Pooling(), IDS, {"pooler"}),
        (nets.Pooling(pools=False), IDS, set()),  # what other blocks repeat
        (nets.encoder(), torch.randn(1, 5, 8), set()),
        (nn.MultiheadAttention(8, 2), (torch.randn(5, 1, 8),) * 3, set()),
        (nn.LSTM(8, 8), torch.randn(5, 1, 8), set()),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_output_layers_on_an_example(model, example, expected):
    assert outputs(model, example) == dict.fromkeys(expected, SEEN)


@pytest.mark.parametrize(
    ("model", "example", "expected"),
    [
        (nets.UNet(), (image(), torch.randn(2, 4)), {"into"}),
        (nets.SuperResolution(), image(), {"head"}),
        (nets.Generator(), torch.randn(2, 16), set()),  # a linear layer is before all of them
        (nn.Sequential(nn.Embedding(9, 6), nn.Conv1d(6, 8, 1)), IDS, set()),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_first_convolutions_on_an_example(model, example, expected):
    assert outputs(model, example, "first") == dict.fromkeys(expected, FIRST)


class Named(nn.Module):
    """Boxes that masks are drawn in; and a layer that is named an output layer, but is none."""

    def __init__(self):
        super().__init__()
        self.head, self.bbox_pred, self.mask = nn.Linear(6, 8), nn.Linear(8, 4), nn.Linear(4, 8)

    def forward(self, x, numpy=False):
        boxes = self.bbox_pred(self.head(x))
        found = boxes, self.mask(F.relu(boxes))
        return [each.numpy() for each in found] if numpy else found


def test_names_count_on_an_example_where_the_layer_reaches_the_output():
    assert outputs(Named()) == {"head": NAMED, "bbox_pred": NAMED}
    assert outputs(Named(), X) == {"bbox_pred": SEEN, "mask": SEEN}


def test_without_a_layer_that_reaches_the_output_it_is_guessed_and_said():
    assert outputs(Named(), {"x": X, "numpy": True}) == {"head": NAMED, "bbox_pred": NAMED}
    model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 4))
    model.register_forward_hook(lambda _, inputs, output: output.numpy())
    assert outputs(model, X) == {"1": LOST}


def test_rules_are_over_what_the_example_shows():
    rows = nm.Sparsifier(nets.TwoHeads(), nm.LBC("2:4"), {"heads.0": "1:4"}, example=X).plan.rows
    assert {row.name: str(row.pattern) for row in rows if "2" in row.name} == {
        "heads.0.2.weight": "1:4",
        "heads.1.2.weight": "None",
    }


@pytest.mark.distributed
def test_every_rank_sees_the_same(tmp_path):
    """FSDP2's parameters are its shards again afterwards."""
    for of_ranks in run_jobs(2, [(nets.planned, kind) for kind in ("ddp", "fsdp", "tensor")], tmp_path):
        assert of_ranks == [{"stem.weight": FIRST, "head.weight": SEEN}] * 2
