"""timm's building blocks around a sparsifier: its optimizers, scalers, averages and checkpoints."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nmlearn as nm
from nets import batches, convnet, same, snapshot, train
from nmlearn.errors import AttachError, ConfigError, PlanError
from nmlearn.lab.models import external

try:
    timm: Any = external.imported("timm")
except ConfigError as error:
    pytest.skip(f"needs the optional package timm: {error.wrong}", allow_module_level=True)

import timm.layers
import timm.optim
import timm.scheduler
import timm.utils

STEPS = 16


def optimizer_of(model: nn.Module, name: str = "adamw", **options: Any) -> torch.optim.Optimizer:
    return timm.optim.create_optimizer_v2(model, name, lr=1e-2, weight_decay=1e-3, **options)


def obeys(model: nn.Module, names: list[str]) -> bool:
    weights = dict(model.named_parameters())
    rows = {row.name: row.grouping for row in nm.Sparsifier(convnet(), nm.LBC("2:4")).plan.sparse}
    return all(int((rows[name].view(weights[name].detach()) != 0).sum(-1).max()) <= 2 for name in names)


@pytest.mark.parametrize("name", ["lookahead_adamw", "lookahead_sgd", "lookahead_lamb", "lookahead_adamp"])
def test_lookahead_writes_nothing_back(name):
    """Its slow weights remember what has been removed."""
    model = convnet()
    optimizer = optimizer_of(model, name)
    assert type(optimizer).__name__ == "Lookahead"
    sparsifier = nm.Sparsifier(model, nm.LBC("2:4")).attach(optimizer, STEPS)

    def check(step: int) -> None:
        assert sparsifier.step == step + 1
        for weight, mask in sparsifier.masks().items():
            assert not dict(model.named_parameters())[weight][~mask].any()

    before = snapshot(model)
    train(model, optimizer, batches(STEPS), after=check)  # slow weights are written at steps 6 and 12
    assert not torch.equal(before["head.weight"], model.head.weight)
    sparsifier.finalize()
    assert obeys(model, [row.name for row in sparsifier.plan.sparse])


def test_lookahead_beside_dense_weights_is_refused():
    model = convnet()
    with pytest.raises(AttachError, match="given Lookahead: it averages the weights in use"):
        nm.Sparsifier(model, nm.SRSTE("2:4")).attach(optimizer_of(model, "lookahead_adamw"), STEPS)
    nm.Sparsifier(model, nm.SRSTE("2:4")).attach(optimizer_of(model, "adamw"), STEPS)


@pytest.mark.parametrize(
    "name", ["lamb", "lion", "adan", "nadamw", "rmsproptf", "adabelief", "laprop", "muon", "adopt"]
)
def test_optimizers_of_timm_keep_the_pattern(name):
    model = convnet()
    optimizer = optimizer_of(model, name)
    sparsifier = nm.Sparsifier(model, nm.LBC("2:4")).attach(optimizer, STEPS)
    train(model, optimizer, batches(STEPS))
    sparsifier.finalize()
    assert obeys(model, [row.name for row in sparsifier.plan.sparse])


def test_the_scaler_with_clipping_and_skipped_steps():
    """A loss scale, a power of two, is undone before learning; an infinite gradient is no step."""
    model, scaled = convnet(), convnet()
    optimizers = [torch.optim.SGD(each.parameters(), 0.05, momentum=0.9) for each in (model, scaled)]
    sparsifiers = [
        nm.Sparsifier(each, nm.LBC("2:4")).attach(optimizer, STEPS)
        for each, optimizer in zip((model, scaled), optimizers, strict=True)
    ]
    scaler = timm.utils.NativeScaler(device="cpu")
    for step, (x, y) in enumerate(batches(STEPS)):
        for optimizer in optimizers:
            optimizer.zero_grad()
        overflow = torch.inf if step == 3 else 1.0
        scaler(F.cross_entropy(scaled(x), y) * overflow, optimizers[1], 0.5, "norm", scaled.parameters())
        loss = F.cross_entropy(model(x), y)
        if step != 3:
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizers[0].step()
    assert [sparsifier.step for sparsifier in sparsifiers] == [STEPS - 1, STEPS - 1]
    assert same(sparsifiers[0].masks(), sparsifiers[1].masks()) and same(snapshot(model), snapshot(scaled))


def test_the_learning_rate_of_each_layer():
    """Layer decay makes a parameter group of every depth; a score learns with its weight's own rate."""
    vit = timm.create_model("test_vit", num_classes=5, img_size=32, patch_size=8)
    optimizer = optimizer_of(vit, "sgd", layer_decay=0.5)
    scheduler, _ = timm.scheduler.create_scheduler_v2(optimizer, num_epochs=2, warmup_epochs=1, updates_per_epoch=4)
    rates = []

    class Spy(nm.LBC):
        name = "lbc"

        def learn(self, weights: Any, at: Any) -> None:
            rates.append((at.lr, [w.in_use.data_ptr() for w in weights]))
            super().learn(weights, at)

    sparsifier = nm.Sparsifier(vit, Spy("2:4")).attach(optimizer, 4)
    scheduler.step(1)
    vit(torch.randn(2, 3, 32, 32)).sum().backward()
    optimizer.step()
    told = {weight: lr for lr, weights in rates for weight in weights}
    groups = {p.data_ptr(): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    taken = [row.parameter.data_ptr() for row in sparsifier.plan.sparse]
    assert told == {place: groups[place] for place in taken} and len(set(told.values())) > 3


@pytest.mark.parametrize("kind", ["ModelEmaV2", "ModelEmaV3"])
@pytest.mark.parametrize("inner", [True, False])
def test_averages_are_finalized(kind, inner):
    model = convnet()
    optimizer = optimizer_of(model)
    average = getattr(timm.utils, kind)(model, decay=0.9)
    sparsifier = nm.Sparsifier(model, nm.LBC("2:4")).attach(optimizer, STEPS)
    train(model, optimizer, batches(STEPS), after=lambda _: average.update(model))
    names = [row.name for row in sparsifier.plan.sparse]
    assert not obeys(average.module, names)
    sparsifier.finalize(average.module if inner else average)
    sparsifier.finalize()
    assert obeys(average.module, names) and obeys(model, names)


@pytest.mark.parametrize("name", ["lookahead_adamw", "sgd"])
@pytest.mark.parametrize("method", [nm.LBC("2:4"), nm.Gradual("2:4")])
def test_a_checkpoint_of_the_saver_goes_on(name, method, tmp_path):
    def start() -> tuple[nn.Module, torch.optim.Optimizer, nm.Sparsifier]:
        model = convnet()
        optimizer = optimizer_of(model, name)
        sparsifier = nm.Sparsifier(model, method).attach(optimizer, STEPS)
        return model, optimizer, sparsifier

    model, optimizer, sparsifier = start()
    data = batches(STEPS)
    train(model, optimizer, data[:7])
    saver = timm.utils.CheckpointSaver(model, optimizer, checkpoint_dir=str(tmp_path))
    saver.save_checkpoint(0, metric=1.0)
    train(model, optimizer, data[7:])
    again, its, resumed = start()
    assert timm.models.resume_checkpoint(again, str(tmp_path / "last.pth.tar"), its) == 1
    assert resumed.step == 7
    train(again, its, data[7:])
    assert same(snapshot(model), snapshot(again)) and same(sparsifier.masks(), resumed.masks())
    sparsifier.finalize()
    assert optimizer.state_dict().keys() == {"state", "param_groups"}


def test_several_sparsifiers_are_carried():
    model = convnet()
    optimizer = optimizer_of(model)
    first, second, *_ = [row.name for row in nm.Sparsifier(model, nm.LBC("2:4")).plan.sparse]
    rules = [{"*": None, first: "2:4"}, {"*": None, second: "1:4"}]
    own = [nm.Sparsifier(model, nm.LBC("2:4"), rules=each).attach(optimizer, STEPS) for each in rules]
    train(model, optimizer, batches(STEPS)[:3])
    saved = optimizer.state_dict()
    train(model, optimizer, batches(STEPS)[3:6])
    optimizer.load_state_dict(saved)
    assert [sparsifier.step for sparsifier in own] == [3, 3]


@pytest.mark.parametrize("layer", ["StdConv2d", "StdConv2dSame", "ScaledStdConv2d", "ScaledStdConv2dSame"])
def test_standardized_weights_are_left_dense(layer, monkeypatch):
    """Their zeros are none where they are computed with."""
    conv, used = getattr(timm.layers, layer)(8, 8, 3), []
    conv.weight.data[:, ::2] = 0
    real = F.conv2d
    with monkeypatch.context() as patch:
        patch.setattr(F, "conv2d", lambda x, weight, *rest: (used.append(weight), real(x, weight, *rest))[1])
        conv(torch.randn(1, 8, 6, 6))
    assert len(used) == 1 and bool((used[0] != 0).all())
    model = nn.Sequential(nn.Conv2d(3, 8, 3), conv, nn.Conv2d(8, 8, 3), nn.Linear(8, 8))
    rows = {row.name: row for row in nm.Sparsifier(model, nm.LBC("2:4")).plan.rows}
    assert "standardizes" in rows["1.weight"].reason and rows["2.weight"].pattern is not None
    for rule in ("2:4", nm.Grouping("2:4", 1)):
        with pytest.raises(PlanError, match="standardizes the weight in forward, which makes zeros non-zero"):
            nm.Sparsifier(model, nm.LBC("2:4"), {"1": rule})


@pytest.mark.parametrize(("name", "most"), [("repvgg_a0", 4), ("levit_128s", 2)])
def test_merged_branches_are_denser_and_merged_norms_are_not(name, most):
    model = timm.create_model(name, num_classes=8)
    for row in nm.Sparsifier(model, nm.LBC("2:4")).plan.sparse:
        view = row.grouping.view(row.parameter.data)
        view.masked_fill_(torch.rand(view.shape).argsort(-1) >= 2, 0)
    merged = nm.Sparsifier(timm.utils.reparameterize_model(model.eval()), nm.LBC("2:4")).plan.sparse
    assert len(merged) > 10
    assert max(int((row.grouping.view(row.parameter.detach()) != 0).sum(-1).max()) for row in merged) == most


@pytest.mark.parametrize(
    ("name", "taken", "dense"),
    [
        ("test_vit", "blocks.0.attn.qkv.weight", "patch_embed.proj.weight"),
        ("test_convnext", "stages.0.blocks.0.mlp.fc1.weight", "stages.0.blocks.0.conv_dw.weight"),
        ("test_efficientnet", "blocks.3.0.conv_pw.weight", "blocks.3.0.conv_dw.weight"),
    ],
)
def test_fused_and_depthwise_layers(name, taken, dense):
    rows = {row.name: row for row in nm.Sparsifier(timm.create_model(name), nm.LBC("2:4")).plan.rows}
    assert rows[taken].pattern is not None and rows[dense].pattern is None and rows[dense].reason
