"""A distillation in Lightning's Trainer: added to what training_step returns, and resumed with the rest."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

import nmlearn as nm
from nets import batches, convnet, same, snapshot
from nmlearn.errors import ConfigError, StateError
from nmlearn.integrations import torchvision

torchvision.load()
pl = pytest.importorskip("lightning.pytorch")

from lightning_run import EPOCHS, STEPS, Net, Watch, fit, trainer  # noqa: E402
from nmlearn.integrations.lightning import NMCallback  # noqa: E402

pytestmark = [  # what Lightning says about itself
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.. is deprecated:FutureWarning"),
]
WEIGHTS = {"hidden": {"conv": 1.0, "hidden": 0.5}, "logits": 0.5}
LBC = nm.LBC("2:4")


def distils(teacher: Any = None, module: str = "model", **options: Any) -> NMCallback:
    distillation = nm.Distillation(convnet(5) if teacher is None else teacher, **WEIGHTS)
    return NMCallback(LBC, module=module, distillation=distillation, **options)


def plain(steps: int = STEPS * EPOCHS) -> torch.nn.Module:
    """The same training in a plain loop."""
    model = convnet()
    distillation = nm.Distillation(convnet(5), **WEIGHTS).attach(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=1e-3)
    sparsifier = nm.Sparsifier(model, LBC).attach(optimizer, steps)
    for x, y in (batches(STEPS) * EPOCHS)[:steps]:
        optimizer.zero_grad()
        (F.cross_entropy(model(x), y) + distillation.loss()).backward()
        optimizer.step()
    sparsifier.finalize()
    return model


def untouched(net: Any) -> bool:
    return "training_step" not in vars(net) and not any(m._forward_hooks for m in net.modules())


class Whole(Net):
    """Its own forward is what is trained; what it returns is a mapping."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return {"loss": F.cross_entropy(self(batch[0]), batch[1]), "more": batch_idx}


@pytest.mark.parametrize("net", [Net, Whole])
def test_it_learns_what_a_plain_loop_learns(net, tmp_path):
    found = fit(tmp_path, callback := distils(module="model" if net is Net else ""), net=net())
    assert same(snapshot(found.model), snapshot(plain())) and callback.finalized and untouched(found)


@pytest.mark.filterwarnings("ignore:It is recommended to use .self.log")
def test_ddp_calls_the_module_around_its_forward(tmp_path):
    found = fit(tmp_path, distils(module=""), net=Whole(), strategy="ddp")
    if dist.is_initialized():
        dist.destroy_process_group()
    assert same(snapshot(found.model), snapshot(plain()))


@pytest.mark.parametrize("teacher", ["copy", None])
@pytest.mark.parametrize("step", [5, 19])
def test_a_resumed_run_is_the_run(teacher, step, tmp_path):
    class Save(pl.Callback):
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            if trainer.global_step == step:
                trainer.save_checkpoint(tmp_path / "x.ckpt")

    whole, again = Watch(distils(teacher)), Watch(distils(teacher))
    fit(tmp_path, whole.callback, whole, Save())
    fit(tmp_path, again.callback, again, ckpt_path=tmp_path / "x.ckpt")
    assert same(again.weights, whole.weights) and same(again.masks, whole.masks) and again.callback.finalized
    with pytest.raises(StateError, match="given none: the checkpoint is of training with a teacher"):
        fit(tmp_path, NMCallback(LBC, module="model"), ckpt_path=tmp_path / "x.ckpt")


def test_the_forward_that_is_never_called(tmp_path):
    net, callback = Net(), distils(module="", log=False)
    with pytest.raises(StateError, match='name the submodule that training_step calls, such as module="model"'):
        fit(tmp_path, callback, net=net)
    assert untouched(net) and callback.sparsifier.total_steps == 0
    with pytest.raises(ConfigError, match="matches no module"):
        wrong = nm.Distillation("copy", hidden={"nothing": 1.0})
        fit(tmp_path, NMCallback(LBC, distillation=wrong), net=net)
    assert untouched(net)


@pytest.mark.filterwarnings("ignore:.training_step. returned .None.")
def test_batches_that_are_skipped_and_what_is_logged(tmp_path):
    seen: list[float] = []

    class Skips(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx)
            return None if batch_idx == 1 else loss

    class See(pl.Callback):
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            seen.append(float(trainer.callback_metrics.get("nm/distillation", -1.0)))

    fit(tmp_path, callback := distils(), See(), net=Skips(), max_epochs=1)
    assert len(seen) == STEPS and seen[0] == -1.0, "logged behind this callback"
    assert seen[1] == seen[2] != seen[3] and min(seen[1:]) > 0 and callback.distillation.last > 0


@pytest.mark.filterwarnings("ignore:.*automatic_optimization")
def test_manual_optimization(tmp_path):
    callback = distils(total_steps=STEPS)

    class Manual(Net):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            self.optimizers().zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx) + callback.distillation.loss())
            self.optimizers().step()

    found = fit(tmp_path, callback, net=Manual(), max_epochs=1)
    assert same(snapshot(found.model), snapshot(plain(STEPS)))


def test_parts_of_a_step_add_up(tmp_path):
    """Accumulated, the loss is divided as the module's own is."""
    calls: list[float] = []

    class See(pl.Callback):
        def on_before_backward(self, trainer: Any, pl_module: Any, loss: torch.Tensor) -> None:
            calls.append(float(loss.detach()))

    one = trainer(tmp_path, distils(), See(), max_epochs=1)
    one.fit(Net())
    two = trainer(tmp_path, distils(), See(), max_epochs=1, accumulate_grad_batches=2)
    two.fit(Net())
    assert calls[STEPS] == pytest.approx(calls[0] / 2)
