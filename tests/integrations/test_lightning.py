"""The callback of Lightning: what it learns is what a plain loop learns, and a resumed run is the run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nmlearn as nm
from nets import batches, convnet, same, snapshot, train
from nmlearn.errors import AttachError, StateError, ViolationError
from nmlearn.integrations import torchvision
from nmlearn.learn import compact
from places import SUPPORT

torchvision.load()
pl = pytest.importorskip("lightning.pytorch")

from lightning_run import EPOCHS, STEPS, Net, Watch, fit, trainer  # noqa: E402
from nmlearn.integrations.lightning import NMCallback  # noqa: E402

pytestmark = [  # what Lightning says about itself
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.. is deprecated:FutureWarning"),
]
METHODS = {"lbc": nm.LBC("2:4"), "srste": nm.SRSTE("2:4"), "gradual": nm.Gradual("1:4")}


def obeys(net: nn.Module, pattern: str = "2:4") -> bool:
    for row in nm.Sparsifier(net, nm.LBC(pattern)).plan.sparse:
        assert row.pattern is not None
        if int((row.grouping.view(row.parameter.detach()) != 0).sum(-1).max()) > row.pattern.n:
            return False
    return True


@pytest.mark.parametrize("name", METHODS)
def test_it_learns_what_a_plain_loop_learns(name, tmp_path):
    net = fit(tmp_path, callback := NMCallback(METHODS[name]))
    model = convnet()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=1e-3)
    sparsifier = nm.Sparsifier(model, METHODS[name]).attach(optimizer, STEPS * EPOCHS)
    train(model, optimizer, batches(STEPS) * EPOCHS)
    sparsifier.finalize()
    assert same(snapshot(net.model), snapshot(model))
    assert callback.finalized and obeys(net, str(METHODS[name].pattern))
    assert [row.name for row in callback.sparsifier.plan.sparse] == [
        "model." + row.name for row in sparsifier.plan.sparse
    ]


class Save(pl.Callback):
    """Saves a checkpoint after some batch."""

    def __init__(self, file: Path, batch: int) -> None:
        self.file, self.batch = file, batch

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        if trainer.global_step == self.batch:
            trainer.save_checkpoint(self.file)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("step", [5, STEPS, 19])
def test_a_resumed_run_is_the_run(name, step, tmp_path):
    """From the middle and the end of an epoch, before the end of the schedule and after."""
    whole, again = Watch(NMCallback(METHODS[name])), Watch(NMCallback(METHODS[name]))
    fit(tmp_path, whole.callback, whole, Save(tmp_path / "x.ckpt", step))
    fit(tmp_path, again.callback, again, ckpt_path=tmp_path / "x.ckpt")
    assert again.steps == whole.steps == STEPS * EPOCHS
    assert same(again.weights, whole.weights) and same(again.masks, whole.masks)
    assert all(torch.equal(a, b) for a, b in zip(again.moments, whole.moments, strict=True))
    assert again.callback.finalized


@pytest.mark.parametrize("step", [5, 19])
def test_a_checkpoint_with_masks_as_bytes_resumes(step, tmp_path):
    """As the callback wrote them before it wrote bits."""
    whole, again, file = (*(Watch(NMCallback(METHODS["lbc"])) for _ in range(2)), tmp_path / "x.ckpt")
    fit(tmp_path, whole.callback, whole, Save(file, step))
    saved = torch.load(file, weights_only=True)
    [ours] = [state for key, state in saved["callbacks"].items() if key == whole.callback.state_key]
    assert ours["sparsifier"]["format"] == compact.PACKED_FORMAT
    ours["sparsifier"] = compact.unpacked(ours["sparsifier"])
    assert ours["sparsifier"]["format"] != compact.PACKED_FORMAT
    torch.save(saved, file)
    fit(tmp_path, again.callback, again, ckpt_path=file)
    assert same(again.weights, whole.weights) and same(again.masks, whole.masks)


def test_what_a_checkpoint_must_agree_with(tmp_path):
    file, lbc = tmp_path / "x.ckpt", METHODS["lbc"]
    fit(tmp_path, NMCallback(lbc), Save(file, 5))
    with pytest.raises(StateError, match="total_steps: given 24: this sparsifier has 32"):
        fit(tmp_path, NMCallback(lbc), max_epochs=4, ckpt_path=file)
    callback = NMCallback(lbc, total_steps=STEPS * EPOCHS)
    with pytest.warns(UserWarning, match="is beyond total_steps=24"):
        longer = fit(tmp_path, callback, max_epochs=4, ckpt_path=file)
    assert callback.finalized and obeys(longer)
    dense = tmp_path / "dense.ckpt"
    fit(tmp_path, Save(dense, 9), max_epochs=2)
    watch = Watch(NMCallback(lbc))
    fit(tmp_path, watch.callback, watch, ckpt_path=dense)
    assert watch.steps == watch.total_steps == STEPS * EPOCHS - 9, "the schedule has what is left of the training"
    late = tmp_path / "late.ckpt"
    fit(tmp_path, NMCallback(lbc), Save(late, 12), ckpt_path=dense)
    resumed = Watch(NMCallback(lbc))
    fit(tmp_path, resumed.callback, resumed, ckpt_path=late)
    assert resumed.total_steps == watch.total_steps and same(resumed.masks, watch.masks)
    assert same(resumed.weights, watch.weights)


def test_after_the_end_the_zeros_can_be_kept(tmp_path):
    net, done, last = Net(), NMCallback(METHODS["lbc"]), tmp_path / "last.ckpt"
    one = trainer(tmp_path, done)
    one.fit(net)
    one.save_checkpoint(last)
    zeros = {name: p == 0 for name, p in net.named_parameters()}
    with pytest.raises(StateError, match="learning was finalized"):
        fit(tmp_path, NMCallback(METHODS["lbc"]), max_epochs=4, ckpt_path=last)
    more = fit(tmp_path, keeps := NMCallback(nm.Keep("2:4")), max_epochs=4, ckpt_path=last)
    assert keeps.finalized and not same(snapshot(more), snapshot(net))
    taken = [row.name for row in keeps.sparsifier.plan.sparse]
    assert taken and all(not dict(more.named_parameters())[name][zeros[name]].any() for name in taken)
    assert Net.load_from_checkpoint(last) and done.state_dict() == {"finalized": True}


def test_what_surrounds_the_step(tmp_path):
    """Accumulation, bf16 and clipping: it learns once a step, from the sum of the gradients as clipped."""
    options = {"accumulate_grad_batches": 3, "precision": "bf16-mixed", "gradient_clip_val": 0.1}
    watch = Watch(NMCallback(METHODS["lbc"]))
    net = fit(tmp_path, watch.callback, watch, **options)
    assert watch.steps == watch.total_steps == EPOCHS * 3  # of 3, 3 and 2 batches
    model = convnet()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=1e-3)
    sparsifier = nm.Sparsifier(model, METHODS["lbc"]).attach(optimizer, EPOCHS * 3)
    for _ in range(EPOCHS):
        for i, (x, y) in enumerate(batches(STEPS)):
            with torch.autocast("cpu", torch.bfloat16):
                loss = F.cross_entropy(model(x).float(), y) / 3
            loss.backward()
            if i % 3 == 2 or i == STEPS - 1:
                nn.utils.clip_grad_norm_(model.parameters(), 0.1)
                optimizer.step()
                optimizer.zero_grad()
    sparsifier.finalize()
    assert same(snapshot(net.model), snapshot(model))


def test_it_logs(tmp_path):
    logger = pl.loggers.CSVLogger(tmp_path)
    fit(tmp_path, NMCallback(METHODS["lbc"]), logger=logger)
    rows = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()
    heads = rows[0].split(",")
    columns = {h: [r.split(",")[i] for r in rows[1:] if r.split(",")[i]] for i, h in enumerate(heads)}
    progress, density, change = ([float(v) for v in columns[f"nm/{k}"]] for k in ("progress", "density", "mask_change"))
    assert progress == pytest.approx([(i + 1) / (STEPS * EPOCHS) for i in range(STEPS * EPOCHS)])
    assert density[0] <= 1 and density[-1] == 0.5 and density == sorted(density, reverse=True)
    assert len(change) == EPOCHS and sum(change) == pytest.approx(0.5) and change[-1] == 0


def test_the_best_checkpoint_is_a_sparse_one(tmp_path):
    """The denser model of the beginning has the better score, and is not what a user wants to keep."""
    best = pl.callbacks.ModelCheckpoint(tmp_path, "{epoch}", monitor="score", mode="max", save_top_k=2)
    patient = pl.callbacks.EarlyStopping("score", mode="max", patience=2)
    options = {"enable_checkpointing": True, "limit_val_batches": 1, "max_epochs": 6}
    callback = NMCallback(METHODS["lbc"])
    fit(tmp_path, callback, best, patient, **options)
    assert callback.finalized
    loaded = Net.load_from_checkpoint(best.best_model_path)
    assert obeys(loaded) and best.best_model_path.endswith("epoch=5.ckpt")
    assert sorted(path.name for path in tmp_path.glob("*.ckpt")) == ["epoch=4.ckpt", "epoch=5.ckpt"]


@pytest.mark.parametrize("first", [True, False])
def test_averaged_weights_are_finalized(first, tmp_path):
    average = pl.callbacks.EMAWeightAveraging(decay=0.5)
    callback = NMCallback(METHODS["lbc"])
    watch = Watch(callback)
    order = [callback, average] if first else [average, callback]
    net = Net()
    trainer(tmp_path, *order, watch, limit_val_batches=1).fit(net)
    assert callback.finalized and obeys(net)
    plain = fit(tmp_path, NMCallback(METHODS["lbc"]))
    assert not torch.equal(plain.model.hidden.weight, net.model.hidden.weight), "the average is in the model"
    callback.sparsifier.finalize(model=(loaded := Net()))  # as for an average from a checkpoint
    assert obeys(loaded) and torch.equal(loaded.model.hidden.weight != 0, net.model.hidden.weight != 0)
    kept = watch.masks["model.hidden.weight"]
    assert torch.equal(net.model.hidden.weight, watch.weights["model.hidden.weight"] * kept)


def test_swa(tmp_path):
    """It adds an epoch without steps for batch norm, which the schedule must not count."""
    callback = NMCallback(METHODS["lbc"])
    watch = Watch(callback)
    net = fit(tmp_path, callback, watch, pl.callbacks.StochasticWeightAveraging(1e-2, swa_epoch_start=2))
    assert callback.finalized and obeys(net)
    assert watch.total_steps == STEPS * EPOCHS


class Gan(Net):
    """Two networks and optimizers, stepped by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.other = convnet(seed=1)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        for net, optimizer in zip((self.other, self.model), self.optimizers(), strict=True):
            optimizer.zero_grad()
            self.manual_backward(F.cross_entropy(net(batch[0]), batch[1]))
            optimizer.step()

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(net.parameters(), 0.05, momentum=0.9) for net in (self.other, self.model)]


def test_several_optimizers(tmp_path):
    lbc, steps = METHODS["lbc"], STEPS * EPOCHS
    both = [
        NMCallback(lbc, {"head": "1:4"}, module="model", optimizer=1, total_steps=steps),
        NMCallback(nm.LBC("1:4"), module="other", optimizer=0, total_steps=steps),
    ]
    net = fit(tmp_path, *both, net=Gan())
    assert obeys(net.model) and obeys(net.other, "1:4") and not obeys(net.model, "1:4")
    assert both[0].finalized and both[1].finalized and float((net.model.head.weight != 0).float().mean()) == 0.25
    with pytest.raises(AttachError, match="configure_optimizers returned 2; give the index of the one"):
        fit(tmp_path, NMCallback(lbc, module="model", total_steps=steps), net=Gan())
    with pytest.raises(AttachError, match="given 2: configure_optimizers returned 2"):
        fit(tmp_path, NMCallback(lbc, module="model", optimizer=2, total_steps=steps), net=Gan())
    with pytest.raises(AttachError, match="manual optimization: the number of steps in training_step is unknown"):
        fit(tmp_path, NMCallback(lbc, module="model", optimizer=1), net=Gan())
    with pytest.raises(AttachError, match="does not hold 3 sparse weights"):
        fit(tmp_path, NMCallback(lbc, optimizer=1, total_steps=steps), net=Gan())


def test_the_number_of_steps(tmp_path):
    lbc = METHODS["lbc"]
    with pytest.raises(AttachError, match="a training run of inf steps: a schedule needs an end"):
        fit(tmp_path, NMCallback(lbc), max_epochs=-1)
    accumulation = pl.callbacks.GradientAccumulationScheduler({0: 2, 1: 4})
    with pytest.raises(AttachError, match="differ from epoch to epoch"):
        fit(tmp_path, NMCallback(lbc), accumulation)
    watch = Watch(NMCallback(lbc))
    fit(tmp_path, watch.callback, watch, max_epochs=-1, max_steps=11)
    assert watch.steps == 11 and watch.callback.finalized
    fit(tmp_path, ran := NMCallback(lbc), fast_dev_run=True)
    assert ran.finalized


def test_a_training_that_stops_early_says_so(tmp_path):
    with (
        pytest.warns(UserWarning, match=r"stopped at progress 0\.208 .* not N:M sparse"),
        pytest.warns(UserWarning, match=r"the Trainer will stop at step 5 of total_steps=24, before the schedule"),
    ):
        net = fit(tmp_path, callback := NMCallback(METHODS["lbc"], total_steps=24), max_steps=5)
    assert not callback.finalized and not obeys(net)
    assert callback.state_dict()["sparsifier"]["step"] == 5


def test_what_breaks_the_pattern_is_an_error(tmp_path):
    class Vandal(pl.Callback):
        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            pl_module.model.hidden.weight.data.fill_(1.0)

    with pytest.raises(ViolationError, match=r"model\.hidden\.weight"):
        fit(tmp_path, NMCallback(METHODS["lbc"]), Vandal())


def test_sharding_strategies_are_refused():
    strategy = pl.strategies.FSDPStrategy()
    with pytest.raises(AttachError, match="given FSDPStrategy: it flattens or shards weights"):
        NMCallback(METHODS["lbc"]).on_train_start(SimpleNamespace(strategy=strategy), Net())


def test_the_other_package(tmp_path):
    """pytorch_lightning has its own classes, which do not mix with those of lightning.pytorch."""
    other = pytest.importorskip("pytorch_lightning")
    from nmlearn.integrations.pytorch_lightning import NMCallback as Other

    members = {name: member for name, member in vars(Net).items() if callable(member)}
    members["__init__"] = lambda self: (other.LightningModule.__init__(self), setattr(self, "model", convnet()))[0]
    net = type("OtherNet", (other.LightningModule,), members)()
    save = Save(tmp_path / "x.ckpt", 5)
    callback, saving = Other(METHODS["lbc"]), type("OtherSave", (other.Callback,), dict(vars(Save)))
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "log_every_n_steps": 1}
    plain = {"accelerator": "cpu", "devices": 1, "enable_checkpointing": False, "limit_val_batches": 0}
    other.Trainer(max_epochs=EPOCHS, callbacks=[callback, saving(save.file, 5)], **quiet, **plain).fit(net)
    assert callback.finalized and isinstance(callback, other.Callback) and obeys(net)
    again = fit(tmp_path, NMCallback(METHODS["lbc"]), ckpt_path=save.file)  # and their checkpoints are alike
    assert same(snapshot(again), snapshot(net))


@pytest.mark.slow
@pytest.mark.distributed
def test_two_processes_learn_what_one_does(tmp_path):
    import lightning_ranks

    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    program = [str(SUPPORT / "lightning_ranks.py"), str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launcher, *program], capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    one, other = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert same(one["masks"], other["masks"]) and same(one["weights"], other["weights"])
    alone = lightning_ranks.trained(tmp_path)
    assert same(alone["masks"], one["masks"])
    for name, weight in alone["weights"].items():
        torch.testing.assert_close(one["weights"][name], weight, rtol=0, atol=1e-6)


def acted_on(model: Any) -> bool:
    return any(p._post_accumulate_grad_hooks for p in model.parameters())


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_training_that_fails_detaches_and_keeps_the_state(tmp_path, error):
    class Fails(pl.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if trainer.global_step == 3:
                raise error

    callback, net = NMCallback(METHODS["lbc"]), Net()
    with pytest.raises((error, SystemExit)):
        fit(tmp_path, callback, Fails(), net=net)
    assert not acted_on(net) and not callback.sparsifier.total_steps
    assert callback.state_dict()["sparsifier"]["step"] == 3
    fit(tmp_path, other := NMCallback(METHODS["lbc"]), net=net)
    assert other.finalized


def test_training_that_stops_early_detaches(tmp_path):
    with (
        pytest.warns(UserWarning, match="not N:M sparse"),
        pytest.warns(UserWarning, match="the Trainer will stop at step 5 of total_steps=24"),
    ):
        net = fit(tmp_path, callback := NMCallback(METHODS["lbc"], total_steps=24), max_steps=5)
    assert not acted_on(net) and not callback.sparsifier.total_steps
