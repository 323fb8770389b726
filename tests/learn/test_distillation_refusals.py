"""What distillation refuses: settings, names, copies, moments, and outputs that do not compare."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import nmlearn as nm
from calibration_models import Language, tokens
from nets import batches, convnet, same, sgd, snapshot
from nmlearn.errors import AttachError, ConfigError, StateError
from taught import LAYERS, other


def test_a_state_of_another_distillation_is_refused():
    model = Language()
    saved = nm.Distillation("copy", hidden=LAYERS).attach(model).state_dict()
    model = Language()
    cases = [
        (nm.Distillation("copy", hidden=LAYERS, logits=1.0), "was saved with"),
        (nm.Distillation("copy", hidden={"layers.*": 2.0}), "was saved with"),
        (nm.Distillation(other(model), hidden=LAYERS), "another teacher"),
    ]
    for distillation, message in cases:
        with distillation.attach(model), pytest.raises(StateError, match=message):
            distillation.load_state_dict(saved)
    with nm.Distillation("copy", hidden=LAYERS).attach(model) as distillation:
        for wrong, message in [
            ({}, "was saved with"),
            (saved | {"copy": None}, "no tensors"),
            (saved | {"copy": {}}, "frozen"),
        ]:
            with pytest.raises(StateError, match=message):
                distillation.load_state_dict(wrong)
        fewer = saved["copy"] | {"embed.weight": torch.zeros(2)}
        with pytest.raises(StateError, match=r"embed.weight: .* another shape"):
            distillation.load_state_dict(saved | {"copy": fewer})
        assert same(snapshot(distillation.teacher), snapshot(model)), "nothing has changed"
    first, second = (nm.Distillation(other(model, seed), hidden=LAYERS).attach(Language()) for seed in (1, 2))
    first.load_state_dict(first.state_dict())
    with pytest.raises(StateError, match="another teacher"):
        second.load_state_dict(first.state_dict())


def wrong_names():
    model = Language()
    yield lambda: nm.Distillation("copy", hidden={"blocks.*": 1.0}).attach(model), ["'blocks.*'", "layers.0"]
    yield (
        lambda: nm.Distillation(nn.Sequential(nn.Linear(1, 1)), hidden=LAYERS).attach(model),
        ["layers.0, layers.1, layers.2", "no modules of these names", "nearest of its 2 names are 0"],
    )
    shallow = Language(depth=2)
    yield lambda: nm.Distillation(shallow, hidden=LAYERS).attach(model), ["layers.2", "layers.1"]
    two = nn.ModuleDict({"a": Language(), "b": Language()})
    yield lambda: nm.Distillation(two, hidden=LAYERS).attach(model), ["several", "'a.', 'b.'"]


@pytest.mark.parametrize(("attach", "said"), list(wrong_names()))
def test_names_that_do_not_match(attach, said):
    with pytest.raises(ConfigError) as error:
        attach()
    assert all(part in str(error.value) for part in said), str(error.value)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({}, "nothing to compare"),
        ({"hidden": {}}, "nothing to compare"),
        ({"hidden": ["layers.*"]}, "no mapping"),
        ({"hidden": {"layers.*": "1"}}, "must be a number"),
        ({"hidden": {"layers.*": -1.0}}, "negative"),
        ({"logits": float("nan")}, "finite"),
        ({"logits": 1.0, "temperature": 0}, "not positive"),
    ],
)
def test_wrong_weights(kwargs, message):
    with pytest.raises(ConfigError, match=message):
        nm.Distillation("copy", **kwargs)


@pytest.mark.parametrize("teacher", [None, "start", Language])
def test_a_teacher_that_is_none(teacher):
    with pytest.raises(ConfigError, match="it is no network"):
        nm.Distillation(teacher, logits=1.0)


def test_a_teacher_that_learns_with_the_model():
    model = Language()
    for teacher in (model, nn.Sequential(model.embed)):
        with pytest.raises(ConfigError, match=r"embed.weight: it is the model's own|weight: it is the model's own"):
            nm.Distillation(teacher, logits=1.0).attach(model)


def test_a_copy_is_made_before_the_model_becomes_sparse():
    model = convnet()
    optimizer = sgd(model)
    sparsifier = nm.Sparsifier(model, nm.LBC("2:4")).attach(optimizer, 4)
    with pytest.raises(AttachError, match="attach the distillation before the sparsifier"):
        nm.Distillation("copy", logits=1.0).attach(model)
    nm.Distillation(other(model), logits=1.0).attach(model).remove()
    sparsifier.detach()
    nm.Sparsifier(model, nm.OneShot("2:4")).apply()
    distillation = nm.Distillation("copy", logits=1.0).attach(model)
    model(batches(1)[0][0])
    with pytest.warns(UserWarning, match=r"many zeros, such as in conv.weight"):
        distillation.loss()
    model(batches(1)[0][0])
    distillation.loss()  # once


def test_a_model_that_cannot_be_copied():
    model = convnet()
    own = model.forward
    model.forward = lambda x: own(x)
    with pytest.raises(AttachError, match="forward of the model was replaced"):
        nm.Distillation("copy", logits=1.0).attach(model)
    del model.forward
    model.kept = model(batches(1)[0][0])
    with pytest.raises(AttachError, match="RuntimeError: Only Tensors"):
        nm.Distillation("copy", logits=1.0).attach(model)


def test_calls_at_the_wrong_moment():
    model = Language()
    distillation = nm.Distillation("copy", hidden=LAYERS)

    def refused(message):
        with pytest.raises(StateError, match=message):
            distillation.loss()

    refused("not attached")
    with pytest.raises(StateError, match="not attached"):
        distillation.state_dict()
    distillation.attach(model)
    with pytest.raises(AttachError, match="attached already"):
        distillation.attach(model)
    refused("not called since attach")
    model.eval()(tokens())
    refused("in evaluation mode")
    with torch.no_grad():
        model.train()(tokens())
    refused("its last call was without gradients")
    with pytest.raises(IndexError):
        model(tokens() + 100)
    refused("ended with an error")
    model(tokens())
    with torch.no_grad():
        refused("could teach nothing")
    model.eval()(tokens(seed=1))
    distillation.loss()
    refused("has given its loss already")
    distillation.remove()
    distillation.remove()
    refused("not attached")


class Odd(nn.Module):
    """Modules that give what cannot be compared."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused, self.width = nn.Linear(4, 4), nn.Linear(4, 4), 4

    def forward(self, x, scale=1.0):
        return {"all": self.used(x)[..., : self.width]}


def test_what_does_not_compare():
    model = Odd()
    narrow = copy.deepcopy(model)
    narrow.used = nn.Linear(4, 3)
    cases = [
        ("copy", {"hidden": {"unused": 1.0}}, "unused: .* did not call it"),
        ("copy", {"logits": 1.0}, "output of the model: it has no logits"),
        (narrow, {"hidden": {"used": 1.0}}, r"\[2, 4\]: the teacher's has the shape \[2, 3\]"),
        (nn.Sequential(), {"logits": 1.0}, "the teacher's forward said|its forward said"),
    ]
    for teacher, kwargs, message in cases:
        with nm.Distillation(teacher, **kwargs).attach(model) as distillation:
            model(torch.randn(2, 4), scale=2.0)
            with pytest.raises(ConfigError, match=message):
                distillation.loss()
    model.used.requires_grad_(False)
    with nm.Distillation("copy", hidden={"used": 1.0}).attach(model) as distillation:
        model(torch.randn(2, 4))
        with pytest.raises(ConfigError, match="nothing that is compared depends on a weight that learns"):
            distillation.loss()
