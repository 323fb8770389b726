"""NMCallback in the Trainer of transformers: the same learning as in a plain loop, safe to stop and to resume."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import nmlearn as nm
from nets import same
from nmlearn.errors import AttachError, PlanError, StateError, ViolationError
from nmlearn.learn import compact

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from nmlearn.integrations.transformers import NMCallback, save_packed  # noqa: E402
from nmlearn.integrations.transformers_trainer import FILE  # noqa: E402
from trainer_run import Sentences, bert, trainer  # noqa: E402


class Stop(transformers.TrainerCallback):
    """Ends training at a step: regularly, or by an exception."""

    def __init__(self, step: int, error: type[Exception] | None = None) -> None:
        self.step, self.error = step, error

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step and self.error:
            raise self.error
        control.should_training_stop |= state.global_step == self.step


def fits(model: torch.nn.Module, callback: NMCallback) -> bool:
    named = dict(model.named_parameters())
    rows = callback.plan.sparse
    return all(int((row.grouping.view(named[row.name]) != 0).sum(-1).max()) == row.pattern.n for row in rows)


@pytest.mark.parametrize("options", [{}, {"gradient_accumulation_steps": 2, "bf16": True, "max_grad_norm": 0.1}])
def test_the_same_as_attaching_by_hand(options, tmp_path):
    callback = NMCallback(nm.LBC("2:4"), rules={"*.query": "1:4"})
    one = trainer(tmp_path, bert(), callback, **options)
    assert len(callback.plan.sparse) == 13 and not callback.sparsifier.total_steps, "planned before training"
    one.train()
    model = bert()
    optimizer = trainer(tmp_path, model).create_optimizer()
    sparsifier = nm.Sparsifier(model, nm.LBC("2:4"), rules={"*.query": "1:4"}).attach(optimizer, 8)
    other = trainer(tmp_path, model, **options)
    other.optimizer = optimizer
    other.train()
    assert sparsifier.step == 8 and callback.sparsifier.total_steps == 0, "detached at the end"
    assert same(one.model.state_dict(), other.model.state_dict())
    assert fits(one.model, callback)


@pytest.mark.parametrize("method", [nm.LBC("2:4"), nm.SRSTE("2:4"), nm.Gradual("2:4")], ids=lambda m: m.name)
def test_resumes_bit_for_bit(method, tmp_path):
    whole, second = (NMCallback(method, finalize=False) for _ in range(2))
    one = trainer(tmp_path / "one", bert(), whole, save_strategy="steps", save_steps=3)
    one.train()
    checkpoint = tmp_path / "one" / "checkpoint-3"
    assert (checkpoint / FILE).exists() and list(checkpoint.glob("*.partial")) == []
    other = trainer(tmp_path / "two", bert(seed=1), second)
    other.train(resume_from_checkpoint=str(checkpoint))
    assert same(one.model.state_dict(), other.model.state_dict())
    assert same(one.optimizer.state_dict()["state"], other.optimizer.state_dict()["state"])
    assert same(whole.sparsifier.masks(), second.sparsifier.masks())
    assert same(whole.sparsifier.state_dict(), second.sparsifier.state_dict())


def test_a_checkpoint_with_masks_as_bytes_resumes(tmp_path):
    """As the callback wrote them before it wrote bits."""
    options = {"save_strategy": "steps", "save_steps": 3}
    one = trainer(tmp_path / "one", bert(), NMCallback(nm.LBC("2:4")), **options)
    one.train()
    checkpoint = tmp_path / "one" / "checkpoint-3"
    saved = torch.load(checkpoint / FILE, weights_only=True)
    assert saved["sparsifier"]["format"] == compact.PACKED_FORMAT
    saved["sparsifier"] = compact.unpacked(saved["sparsifier"])
    assert saved["sparsifier"]["format"] != compact.PACKED_FORMAT
    torch.save(saved, checkpoint / FILE)
    other = trainer(tmp_path / "two", bert(seed=1), NMCallback(nm.LBC("2:4")))
    other.train(resume_from_checkpoint=str(checkpoint))
    assert same(one.model.state_dict(), other.model.state_dict())


def test_logs_reach_the_callbacks_that_write_them(tmp_path):
    seen: list[dict[str, float]] = []

    class Writer(transformers.TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            seen.append(dict(logs))

    run = trainer(tmp_path, bert(), Writer(), NMCallback(nm.LBC("2:4", end=0.5)))
    run.train()
    assert [logs["nm_progress"] for logs in seen if "loss" in logs] == [0.5, 1.0]
    assert [logs["nm_density"] for logs in seen if "loss" in logs] == [0.5, 0.5]
    assert [logs["nm_mask_change"] for logs in seen if "loss" in logs] == [0.5, 0.0]
    assert [logs["nm_mask_change"] for logs in run.state.log_history if "loss" in logs] == [0.5, 0.0]
    assert "nm_progress" not in seen[-1], "the summary at the end is not about a step"


def test_tensorboard_sees_them(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    trainer(tmp_path, bert(), NMCallback(nm.LBC("2:4")), report_to="tensorboard").train()
    [folder] = {file.parent for file in tmp_path.rglob("events.out.tfevents.*")}
    events = accumulator.EventAccumulator(str(folder)).Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/nm_density")] == [(4, 0.5), (8, 0.5)]


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"gradient_accumulation_steps": 3, "max_steps": -1, "num_train_epochs": 2}, 6),
        ({"bf16": True, "max_grad_norm": 0.01, "max_steps": 5}, 5),
        ({"gradient_checkpointing": True, "max_steps": 5}, 5),
        ({"optim": "adafactor", "max_steps": 5}, 5),
        ({"optim": "sgd", "max_steps": 5, "lr_scheduler_type": "constant"}, 5),
    ],
    ids=["accumulation", "bf16", "checkpointing", "adafactor", "sgd"],
)
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing")
def test_counts_optimizer_steps(options, steps, tmp_path):
    callback = NMCallback(nm.LBC("2:4", end=1.0), finalize=False)
    run = trainer(tmp_path, bert(), callback, **options)
    run.train()
    sparsifier = callback.sparsifier
    assert (sparsifier.step, sparsifier.total_steps, run.state.global_step) == (steps, steps, steps)
    sparsifier.finalize()
    assert fits(run.model, callback)


@pytest.mark.parametrize("optim", ["schedule_free_adamw", "schedule_free_sgd"])
def test_schedule_free_optimizers_keep_the_pattern_in_both_modes(optim, tmp_path):
    """The Trainer evaluates, and ends, with averages in place of the weights."""
    pytest.importorskip("schedulefree")
    callback = NMCallback(nm.LBC("2:4"))
    run = trainer(tmp_path, bert(), callback, optim=optim, eval_strategy="steps", eval_steps=3)
    run.train()
    for mode in (run.optimizer.eval, run.optimizer.train, run.optimizer.eval):
        mode()
        assert fits(run.model, callback)


def test_saves_an_ordinary_model(tmp_path):
    callback = NMCallback(nm.LBC("2:4"))
    config = {"vocab_size": 64, "n_embd": 32, "n_layer": 1, "n_head": 2, "bos_token_id": 0, "eos_token_id": 0}
    model = transformers.GPT2ForSequenceClassification(transformers.GPT2Config(pad_token_id=0, **config))
    run = trainer(tmp_path, model, callback)
    run.train()
    assert {row.kind for row in callback.plan.sparse} == {"Conv1D"} and fits(model, callback)
    run.save_model(str(tmp_path / "dense"))
    save_packed(model, tmp_path / "packed")
    for folder in ("dense", "packed"):
        loaded = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / folder)
        assert same(loaded.state_dict(), model.state_dict())


def evaluated(folder: Path, callback: NMCallback, losses: list[float], *more: Any, **options: Any) -> Any:
    """A Trainer that evaluates and saves every second step, with these losses, and loads the best model at the end."""

    class Graded(transformers.TrainerCallback):
        def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
            metrics["eval_loss"] = losses[state.global_step // 2 - 1]

    often = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2, "max_steps": 10}
    best = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "greater_is_better": False}
    return trainer(folder, bert(), Graded(), *more, callback, **(often | best | options))


@pytest.mark.parametrize("limit", [None, 1])
def test_the_best_model_is_one_that_fits(limit, tmp_path):
    callback = NMCallback(nm.LBC("2:4", end=0.5))  # settled from step 5 on
    run = evaluated(tmp_path, callback, [0.1, 0.2, 0.5, 0.4, 0.6], save_total_limit=limit)
    run.train()
    assert run.state.best_global_step == 8 and run.state.best_metric == 0.4
    best = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "checkpoint-8")
    assert same(run.model.state_dict(), best.state_dict()) and fits(best, callback)


def test_the_best_model_across_a_resume(tmp_path):
    losses = [0.1, 0.2, 0.5, 0.6, 0.7]
    options = {"save_steps": 4, "eval_steps": 2}
    with pytest.raises(KeyboardInterrupt):
        stop = Stop(5, KeyboardInterrupt)
        evaluated(tmp_path, NMCallback(nm.LBC("2:4", end=0.5)), losses, stop, **options).train()
    run = evaluated(tmp_path, NMCallback(nm.LBC("2:4", end=0.5)), losses, **options)
    run.train(resume_from_checkpoint=True)
    assert run.state.best_metric == 0.5, "not 0.2, which was measured at step 4 and is in the state that was resumed"


def test_stopping_early(tmp_path):
    """Patience begins when the masks have settled, wherever the two callbacks stand in line."""
    patience = transformers.EarlyStoppingCallback(early_stopping_patience=1)
    callback = NMCallback(nm.LBC("2:4", end=0.5))
    run = evaluated(tmp_path, callback, [0.1, 0.2, 0.3, 0.4, 0.5], patience)
    run.train()
    assert run.state.global_step == 8 and fits(run.model, callback)


def test_stopped_before_the_end_of_the_schedule(tmp_path):
    with pytest.raises(ViolationError, match=r"progress 0\.250 of its schedule"):
        trainer(tmp_path, bert(), NMCallback(nm.LBC("2:4", end=0.5)), Stop(2)).train()
    callback = NMCallback(nm.LBC("2:4", end=0.5), finalize=False)
    trainer(tmp_path, bert(), callback, Stop(2)).train()
    assert callback.sparsifier.progress == 0.25


@pytest.mark.slow
def test_trains_again(tmp_path):
    """After an interruption, and after an end: with the same callback."""
    callback, stop = NMCallback(nm.LBC("2:4")), Stop(3, KeyboardInterrupt)
    run = trainer(tmp_path, bert(), callback, stop)
    with pytest.raises(KeyboardInterrupt):
        run.train()
    stop.step = -1
    run.train()
    run.train()
    assert fits(run.model, callback)
    trainer(tmp_path, other := bert(1), callback).train()
    assert fits(other, callback)


def test_a_model_made_by_the_trainer(tmp_path):
    callback = NMCallback(nm.LBC("2:4"))
    args = transformers.TrainingArguments(str(tmp_path), max_steps=4, use_cpu=True, report_to="none", disable_tqdm=True)
    run = transformers.Trainer(None, args, train_dataset=Sentences(), model_init=lambda: bert(), callbacks=[callback])
    run.train()
    assert callback.sparsifier.model is run.model and fits(run.model, callback)


def test_added_later(tmp_path):
    run, callback = trainer(tmp_path, bert()), NMCallback(nm.LBC("2:4"))
    run.add_callback(callback)
    with pytest.raises(StateError, match="no Trainer"):
        _ = callback.plan
    run.train()
    assert fits(run.model, callback) and "nm_density" in run.state.log_history[0]


def test_what_is_refused_when_the_trainer_is_made(tmp_path):
    with pytest.raises(PlanError, match="matches no module"):
        trainer(tmp_path, bert(), NMCallback(nm.LBC("2:4"), rules={"nothing": "1:4"}))
    with pytest.raises(AttachError, match="steps inside backward"):
        trainer(tmp_path, bert(), NMCallback(nm.LBC("2:4")), optim="galore_adafactor_layerwise")
    with pytest.raises(AttachError, match="callbacks are not called"):
        trainer(tmp_path, bert(), NMCallback(nm.LBC("2:4")), enable_jit_checkpoint=True)
    args = transformers.TrainingArguments(str(tmp_path), use_cpu=True)
    args.deepspeed = {"zero_optimization": {"stage": 1}}
    with pytest.raises(AttachError, match="DeepSpeed"):
        transformers.Trainer(bert(), args, callbacks=[NMCallback(nm.LBC("2:4"))])


def test_what_is_refused_when_training_begins(tmp_path):
    from transformers.trainer_pt_utils import LayerWiseDummyOptimizer

    run = trainer(tmp_path, model := bert(), NMCallback(nm.LBC("2:4")))
    run.optimizer = LayerWiseDummyOptimizer({})
    with pytest.raises(AttachError, match="steps inside backward"):
        run.train()
    run = trainer(tmp_path, model, NMCallback(nm.LBC("2:4")))
    run.optimizer = torch.optim.AdamW(model.classifier.parameters())
    with pytest.raises(AttachError, match="does not hold 13 sparse weights"):
        run.train()
    callback = NMCallback(nm.LBC("2:4"), finalize=False)  # it stays attached
    trainer(tmp_path, model, callback, Stop(1)).train()
    with pytest.raises(AttachError, match="one for each Trainer"):
        trainer(tmp_path, bert(), callback).train()


@pytest.mark.slow
def test_checkpoints_that_are_refused(tmp_path):
    trainer(tmp_path, bert(), NMCallback(nm.LBC("2:4")), save_strategy="steps", save_steps=4).train()
    file = tmp_path / "checkpoint-4" / FILE

    def resume(method: nm.Method) -> None:
        trainer(tmp_path, bert(), NMCallback(method)).train(resume_from_checkpoint=str(file.parent))

    with pytest.raises(StateError, match=r"end: given 0\.5: this sparsifier has 0\.75"):
        resume(nm.LBC("2:4", end=0.75))
    written = file.read_bytes()
    file.write_bytes(written[:-100])
    with pytest.raises(StateError, match="cannot be read"):
        resume(nm.LBC("2:4"))
    file.write_bytes((tmp_path / "checkpoint-8" / FILE).read_bytes())
    with pytest.raises(StateError, match="saved at step 8, and training resumes at 4"):
        resume(nm.LBC("2:4"))
    file.unlink()
    callback = NMCallback(nm.LBC("2:4"))
    with pytest.raises(StateError, match="saved without NMCallback"):
        trainer(tmp_path, bert(), callback).train(resume_from_checkpoint=str(file.parent))
    trainer(tmp_path, bert(), callback).train()  # nothing is left attached


def test_sharding_of_the_first_kind_is_refused(tmp_path):
    class FullyShardedDataParallel(torch.nn.Module):
        pass

    model = bert()
    model.add_module("wrapped", FullyShardedDataParallel())
    with pytest.raises(AttachError, match=r"FSDP1.*fsdp_config"):
        trainer(tmp_path, model, NMCallback(nm.LBC("2:4"))).train()


def test_a_dense_run_has_an_ordinary_best_model(tmp_path):
    run = evaluated(tmp_path, NMCallback(nm.Dense("2:4")), [0.1, 0.2, 0.5, 0.4, 0.6])
    run.train()
    assert run.state.best_global_step == 2


def test_models_only(tmp_path):
    trainer(tmp_path, bert(), NMCallback(nm.LBC("2:4")), save_strategy="steps", save_only_model=True).train()
    assert not (tmp_path / "checkpoint-8" / FILE).exists()


def test_uploads_have_it(tmp_path, monkeypatch):
    """Checkpoints are uploaded by a thread that begins before callbacks hear of them."""
    uploaded: dict[str, set[str]] = {}

    def upload(folder_path: str, **kwargs: Any) -> Any:
        uploaded[Path(folder_path).name] = {file.name for file in Path(folder_path).iterdir()}
        return None

    run = trainer(tmp_path, bert(), NMCallback(nm.LBC("2:4")), save_strategy="steps", save_steps=4)
    monkeypatch.setattr(transformers.trainer, "hf_api", lambda: SimpleNamespace(upload_folder=upload))
    monkeypatch.setattr(transformers.trainer, "PushInProgress", lambda jobs: None)
    run.push_in_progress = None
    run.args.push_to_hub, run.args.hub_strategy = True, transformers.trainer.HubStrategy.CHECKPOINT
    run.train()
    assert FILE in uploaded["checkpoint-4"] and FILE in uploaded["checkpoint-8"]


def test_a_trial_that_is_given_up_needs_no_pattern(tmp_path):
    callback = NMCallback(nm.LBC("2:4"))
    run = trainer(tmp_path, bert(), callback, Stop(2))
    stop = run.callback_handler.callbacks[-2]
    assert isinstance(stop, Stop)
    begin = stop.on_train_begin
    stop.on_train_begin = lambda args, state, control, **k: (
        setattr(state, "is_hyper_param_search", True) or begin(args, state, control, **k)
    )
    run.train()
    assert callback.sparsifier.total_steps == 0


def acted_on(model: torch.nn.Module) -> bool:
    return any(p._post_accumulate_grad_hooks for p in model.parameters())


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError("out of memory")])
def test_an_end_that_no_event_tells_of_detaches(tmp_path, error):
    """The Trainer and its optimizer are still there, as after a notebook cell that failed."""
    run = trainer(tmp_path, model := bert(), callback := NMCallback(nm.LBC("2:4")), Stop(3, error))
    with pytest.raises(error if isinstance(error, type) else type(error)):
        run.train()
    assert run.optimizer is not None and callback.sparsifier.total_steps == 0 and not acted_on(model)
    again = trainer(tmp_path, model, callback := NMCallback(nm.LBC("2:4")))
    again.train()
    assert fits(model, callback) and "_run_epoch" not in vars(run) | vars(again)


def test_a_violation_at_the_end_detaches(tmp_path):
    run = trainer(tmp_path, model := bert(), NMCallback(nm.LBC("2:4", end=0.5)), Stop(2))
    with pytest.raises(ViolationError):
        run.train()
    assert not acted_on(model)
