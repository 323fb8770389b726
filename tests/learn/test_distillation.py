"""Distillation in a loop of one's own: its laws."""

from __future__ import annotations

import copy
import gc
import io
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nmlearn as nm
from calibration_models import Language, tokens
from nets import batches, convnet, same, sgd, snapshot
from nmlearn.errors import StateError
from taught import LAYERS, MASK, other


class Headless(nn.Module):
    """The blocks alone, as a pretrained encoder has them."""

    def __init__(self, of: Language) -> None:
        super().__init__()
        self.embed, self.layers = copy.deepcopy(of.embed), copy.deepcopy(of.layers)

    def forward(self, tokens, attention_mask=None):
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x, attention_mask)
        return x


class Classifier(nn.Module):
    """A language model under another name, with a loss of its own, as those of transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.base = Language()

    def forward(self, tokens, attention_mask=None, labels=None):
        logits = self.base(tokens, attention_mask)
        return {"loss": None if labels is None else F.cross_entropy(logits.flatten(0, 1), labels), "logits": logits}


def step(model, distillation, optimizer, *args, **kwargs):
    optimizer.zero_grad()
    loss = F.cross_entropy(model(*args, **kwargs).flatten(0, 1), tokens(seed=5).flatten()) + distillation.loss()
    loss.backward()
    optimizer.step()


def test_the_loss_is_what_was_written_out():
    """By loops over tokens, in float64, from outputs that the models give one after the other."""
    model = Language().double()
    teacher = other(model)
    distillation = nm.Distillation(teacher, hidden={"layers.*": 0.5, "layers.2": 2.0}, logits=0.25, temperature=3.0)
    distillation.attach(model)
    model(tokens(), attention_mask=MASK)
    found = distillation.loss()

    def states(net):
        x, outputs = net.embed(tokens()), []
        for layer in net.layers:
            outputs.append(x := layer(x, MASK))
        return [h[MASK.bool()] for h in (*outputs, net.head(x))]

    ours, theirs = states(model), states(teacher)
    errors = [
        ((h - t) ** 2).mean() / (t**2).mean().sub(t.mean() ** 2) for h, t in zip(ours[:3], theirs[:3], strict=True)
    ]
    soft = [F.softmax(logits[3] / 3.0, -1) for logits in (ours, theirs)]
    divergence = 9.0 * (soft[1] * (soft[1] / soft[0]).log()).sum(-1).mean()
    expected = 0.5 * (errors[0] + errors[1]) / 2 + 2.0 * errors[2] + 0.25 * divergence
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)
    grads = [torch.autograd.grad(loss, model.embed.weight)[0] for loss in (found, expected)]
    torch.testing.assert_close(*grads, rtol=1e-8, atol=1e-12)
    assert torch.equal(distillation.last, found) and not distillation.last.requires_grad


@pytest.mark.parametrize("training", [True, False])
def test_nothing_to_learn_from_oneself(training):
    """Batch norm and dropout are in evaluation mode in the teacher alone."""
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.Linear(16, 4))
    for module in model[1:3]:
        module.train(training)
    with nm.Distillation("copy", hidden={"0": 1.0, "2": 1.0}, logits=1.0).attach(model) as distillation:
        if not training:
            model[1].eval(), model[2].eval()
        model(torch.randn(6, 8))
        assert bool(distillation.loss() > 0) == training


def test_masked_tokens_have_no_influence():
    model = Language()
    distillation = nm.Distillation(other(model), hidden=LAYERS, logits=1.0).attach(model)
    losses, grads = [], []
    for seed in (0, 7):
        ids = torch.where(MASK.bool(), tokens(), tokens(seed=seed))
        model.zero_grad()
        model(ids, MASK)  # by position too
        losses.append(distillation.loss())
        losses[-1].backward()
        grads.append(torch.cat([p.grad.flatten() for name, p in model.named_parameters() if "embed" not in name]))
    assert torch.equal(*losses)
    torch.testing.assert_close(*grads, rtol=0, atol=1e-8)
    model(tokens())
    assert distillation.loss() != losses[0], "without a mask all tokens count"


@pytest.mark.parametrize("teacher", ["copy", "other"])
def test_the_model_knows_nothing_of_it(teacher):
    """Its state, parameters and modules; with weights of zero not a bit of training changes, nor is the teacher run."""
    plain, model = Language(), Language()
    given = "copy" if teacher == "copy" else other(model)
    distillation = nm.Distillation(given, hidden={"layers.*": 0.0}).attach(model)
    before = [list(model.state_dict()), [id(p) for p in model.parameters()], list(model.modules())]
    distillation.teacher.forward = None  # it cannot be called
    optimizers = [sgd(plain), sgd(model)]
    for seed in range(3):
        for net, optimizer in zip((plain, model), optimizers, strict=True):
            optimizer.zero_grad()
            loss = net(tokens(seed=seed)).square().mean()
            (loss + distillation.loss() if net is model else loss).backward()
            optimizer.step()
    assert same(snapshot(plain), snapshot(model))
    assert before == [list(model.state_dict()), [id(p) for p in model.parameters()], list(model.modules())]
    distillation.remove()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_the_teacher_never_changes():
    """Neither weights nor statistics nor modes, nor does it get gradients, even where its weights could learn."""
    model = convnet()
    teacher = other(model).train()
    teacher.head.eval()
    before, modes = snapshot(teacher), [m.training for m in teacher.modules()]
    random = torch.get_rng_state()
    distillation = nm.Distillation(teacher, hidden={"conv": 1.0, "hidden": 1.0}, logits=1.0).attach(model)
    optimizer = sgd(model)
    for x, y in batches(3):
        optimizer.zero_grad()
        (F.cross_entropy(model(x), y) + distillation.loss()).backward()
        optimizer.step()
    assert same(before, snapshot(teacher)) and modes == [m.training for m in teacher.modules()]
    assert all(p.grad is None and p.requires_grad for p in teacher.parameters())
    assert torch.equal(random, torch.get_rng_state())
    assert not any(m._forward_hooks for m in teacher.modules())


def test_frozen_parameters_are_shared_until_they_learn():
    model = Language()
    model.embed.requires_grad_(False)
    model.layers[0].norm.requires_grad_(False)
    distillation = nm.Distillation("copy", hidden=LAYERS).attach(model)
    twin, start = distillation.teacher, snapshot(model)
    shared = {name for name, p in twin.named_parameters() if p.data_ptr() == model.get_parameter(name).data_ptr()}
    assert shared == {"embed.weight", "layers.0.norm.weight", "layers.0.norm.bias"}
    assert twin.embed.weight is model.embed.weight
    optimizer = sgd(model)
    step(model, distillation, optimizer, tokens())
    model.embed.requires_grad_(True)
    for _ in range(2):
        step(model, distillation, optimizer, tokens())
    assert twin.embed.weight is not model.embed.weight and not torch.equal(model.embed.weight, start["embed.weight"])
    assert same(snapshot(twin), start), "as it was at attach"
    assert not any(p.requires_grad for p in twin.parameters())


def run(steps, saved=None, teacher="copy", frozen=True):
    """Train with LBC and a teacher to a step; from a saved state on, with the model in the wrong state at first."""
    model = Language()
    given = teacher if teacher == "copy" else other(Language())
    model.embed.requires_grad_(not frozen)
    if saved:
        model.load_state_dict(saved["model"])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-2)
    distillation = nm.Distillation(given, hidden=LAYERS, logits=0.5).attach(model)
    sparsifier = nm.Sparsifier(model, nm.LBC("2:4")).attach(optimizer, 5)
    parts = {"model": model, "optimizer": optimizer, "sparsifier": sparsifier, "distillation": distillation}
    for name, part in parts.items() if saved else ():
        part.load_state_dict(saved[name])
    for seed in range(sparsifier.step, steps):
        step(model, distillation, optimizer, tokens(seed=seed), attention_mask=MASK)
    state = {name: part.state_dict() for name, part in parts.items()}
    torch.save(state, file := io.BytesIO())
    if sparsifier.ended:
        sparsifier.finalize()
    return model, torch.load(io.BytesIO(file.getvalue()), weights_only=True)


@pytest.mark.parametrize("teacher", ["copy", "other"])
def test_with_lbc_it_resumes_bit_for_bit(teacher):
    """Also where the model was loaded before attach, which copies it half-way: the state has the copy of the start."""
    whole, end = run(5, teacher=teacher)
    _, half = run(2, teacher=teacher)
    again, end_again = run(5, half, teacher)
    assert same(end, end_again) and same(snapshot(whole), snapshot(again))
    saved = end["distillation"]
    assert ("copy" in saved) == (teacher == "copy") and "embed.weight" not in saved.get("copy", {})
    plan = nm.Sparsifier(again, nm.LBC("2:4")).plan
    assert len(plan.sparse) == 12
    assert all((row.grouping.view(row.parameter) != 0).sum(-1).max() == 2 for row in plan.sparse)


def test_frozen_parameters_of_a_saved_copy():
    """What was copied and is frozen now becomes the copy's own; what was shared and learns now is not in the state."""
    learning, frozen = Language(), Language()
    frozen.embed.requires_grad_(False)
    full = nm.Distillation("copy", hidden=LAYERS).attach(learning).state_dict()
    full["copy"]["embed.weight"] = full["copy"]["embed.weight"] + 1
    distillation = nm.Distillation("copy", hidden=LAYERS).attach(frozen)
    part = distillation.state_dict()
    distillation.load_state_dict(full)
    assert torch.equal(distillation.teacher.embed.weight, frozen.embed.weight + 1)
    with pytest.raises(StateError, match=r"embed.weight: .* it was frozen when this was saved"):
        nm.Distillation("copy", hidden=LAYERS).attach(Language()).load_state_dict(part)


def test_labels_are_not_the_teachers():
    """Its own loss is not computed, and it need not know them."""
    model = Classifier()
    teacher = other(model)
    seen = []
    teacher.register_forward_pre_hook(lambda m, args, kwargs: seen.append(sorted(kwargs)), with_kwargs=True)
    distillation = nm.Distillation(teacher, logits=1.0).attach(model)
    output = model(tokens=tokens(), labels=tokens(seed=3).flatten())
    (output["loss"] + distillation.loss()).backward()
    assert seen == [["tokens"]]


@pytest.mark.parametrize("student", [Language, Classifier])
def test_a_pretrained_encoder_without_a_head(student):
    """Names that differ in their first parts, on either side."""
    model = student()
    for teacher in (Headless(other(Language())), nn.ModuleDict({"a": Headless(other(Language()))})["a"]):
        with nm.Distillation(teacher, hidden=LAYERS).attach(model) as distillation:
            model(tokens(), MASK)
            loss = distillation.loss()
        with nm.Distillation(other(Language()), hidden=LAYERS).attach(model) as distillation:
            model(tokens(), MASK)
            assert torch.equal(distillation.loss(), loss) and loss > 0


def test_without_logits_the_teacher_stops_at_its_last_layer():
    model = Language()
    teacher = other(model)
    teacher.head.forward = None  # it cannot be called
    distillation = nm.Distillation(teacher, hidden={"layers.0": 1.0}).attach(model)
    model(tokens())
    assert distillation.loss() > 0


def test_it_ends_with_the_object():
    model = Language()
    distillation = nm.Distillation("copy", hidden=LAYERS).attach(model)
    model(tokens())
    teacher = weakref.ref(distillation.teacher)
    assert "attached to Language" in repr(distillation)
    del distillation
    gc.collect()
    assert teacher() is None and not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    twin = copy.deepcopy(model)
    watching = nm.Distillation(twin, hidden=LAYERS).attach(model)
    copied = copy.deepcopy(model)
    copied(tokens())
    with pytest.raises(StateError, match="not called since attach"):
        watching.loss()


def test_nothing_is_kept_after_the_loss():
    model = convnet()
    distillation = nm.Distillation("copy", hidden={"conv": 1.0}).attach(model)
    x = batches(1)[0][0].clone()
    model(x)
    held = weakref.ref(x)
    del x
    gc.collect()
    assert held() is not None
    distillation.loss().backward()
    gc.collect()
    assert held() is None
