"""A distillation in the Trainer of transformers: added to its loss, whatever that is, and resumed with the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import nmlearn as nm
from nets import same
from nmlearn.errors import AttachError, ConfigError, StateError

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from nmlearn.integrations.transformers import NMCallback  # noqa: E402
from trainer_run import SMALL, Sentences, bert, trainer  # noqa: E402

LAYERS = {"encoder.layer.*": 1.0}
OPTIONS = [{"bf16": True}, {"gradient_checkpointing": True}]
OPTIONS += [pytest.param({"torch_compile": True}, marks=pytest.mark.slow)]


def encoder(seed: int = 7) -> torch.nn.Module:
    """A pretrained network without a head."""
    torch.manual_seed(seed)
    return transformers.BertModel(transformers.BertConfig(**SMALL))


def calm(seed: int = 0) -> torch.nn.Module:
    """A network without dropout."""
    torch.manual_seed(seed)
    quiet = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return transformers.BertForSequenceClassification(transformers.BertConfig(**SMALL, **quiet))


def hooked(model: torch.nn.Module) -> bool:
    return any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


class ByHand(transformers.Trainer):
    """What the callback does, in a subclass."""

    distillation: Any = None

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        loss = super().compute_loss(*args, **kwargs)
        return loss + self.distillation.loss() if self.model.training else loss


def test_the_same_as_a_subclass(tmp_path):
    callback = NMCallback(nm.LBC("2:4"), distillation=nm.Distillation(encoder(), hidden=LAYERS))
    one = trainer(tmp_path, bert(), callback, eval_strategy="steps", eval_steps=3)
    compute_loss = one.compute_loss
    one.train()
    model, teacher = bert(), encoder()
    other = ByHand(model, one.args, train_dataset=Sentences(), eval_dataset=Sentences(4))
    other.distillation = nm.Distillation(teacher, hidden=LAYERS).attach(model)
    other.create_optimizer()
    sparsifier = nm.Sparsifier(model, nm.LBC("2:4")).attach(other.optimizer, 8)
    other.train()
    assert sparsifier.step == 8 and same(one.model.state_dict(), other.model.state_dict())
    assert one.compute_loss == compute_loss and not hooked(one.model), "put back as they were"
    trainer(tmp_path, plain := bert(), NMCallback(nm.LBC("2:4"))).train()
    assert not same(plain.state_dict(), model.state_dict())


@pytest.mark.parametrize("kind", ["scaled", "said to be", "by the Trainer", "smoothed", "function"])
def test_parts_of_a_step_add_up(kind, tmp_path):
    """Two parts of 4 are a batch of 8, whoever divides the Trainer's own loss by their number."""

    def nothing(model: torch.nn.Module, inputs: Any, **kwargs: Any) -> torch.Tensor:
        return 0 * model(**inputs).logits.sum()

    def function(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(outputs.logits, labels, reduction="sum") / num_items_in_batch

    def trained(**options: Any) -> dict[str, torch.Tensor]:
        distillation = nm.Distillation(calm(3), logits=100.0)
        model, callback = calm(), NMCallback(nm.Dense("2:4"), distillation=distillation)
        plain = {"max_steps": 1, "optim": "sgd", "lr_scheduler_type": "constant", "max_grad_norm": 0.0}
        smoothing = {"label_smoothing_factor": 0.1} if kind == "smoothed" else {}
        run = trainer(tmp_path, model, callback, **plain, **smoothing, **options)
        run.model_accepts_loss_kwargs &= kind != "by the Trainer"
        run.compute_loss_func = function if kind == "function" else None
        run.loss_is_scaled_for_ga = True if kind == "said to be" else None
        if kind in ("scaled", "said to be"):  # BERT takes the number of labels, and divides by that of its part
            run.compute_loss = nothing
        run.train()
        assert vars(run).get("compute_loss") in (None, nothing)
        return model.state_dict()

    whole = trained(per_device_train_batch_size=8)
    parts = trained(per_device_train_batch_size=4, gradient_accumulation_steps=2)
    assert not same(whole, calm().state_dict())
    for name, weight in whole.items():
        torch.testing.assert_close(parts[name], weight, rtol=0, atol=1e-5, msg=name)


@pytest.mark.parametrize("teacher", ["copy", "encoder"])
def test_resumes_bit_for_bit(teacher, tmp_path):
    """A copy is that of the beginning, although the resumed model has other weights when training begins."""

    def run(folder: Path, seed: int) -> Any:
        given = "copy" if teacher == "copy" else encoder()
        callback = NMCallback(nm.LBC("2:4"), distillation=nm.Distillation(given, hidden=LAYERS))
        model = bert(seed)
        model.bert.embeddings.word_embeddings.requires_grad_(False)
        return trainer(folder, model, callback, save_strategy="steps", save_steps=3)

    one, other = run(tmp_path / "one", 0), run(tmp_path / "two", 1)
    one.train()
    other.train(resume_from_checkpoint=str(tmp_path / "one" / "checkpoint-3"))
    assert same(one.model.state_dict(), other.model.state_dict())
    assert same(one.optimizer.state_dict()["state"], other.optimizer.state_dict()["state"])


def test_checkpoints_of_another_teacher_are_refused(tmp_path):
    def run(distillation: nm.Distillation | None, checkpoint: Any = None) -> None:
        callback = NMCallback(nm.LBC("2:4"), distillation=distillation)
        saves = {"save_strategy": "steps", "save_steps": 4} if checkpoint is None else {}
        one = trainer(tmp_path / str(distillation is None), model := bert(), callback, **saves)
        try:
            one.train(resume_from_checkpoint=checkpoint and str(tmp_path / checkpoint))
        finally:
            assert not hooked(model) and callback.sparsifier.total_steps == 0
            assert not {"compute_loss", "_run_epoch"} & vars(one).keys()

    run(nm.Distillation(encoder(), hidden=LAYERS))
    run(None)
    with pytest.raises(StateError, match=r"given none: the checkpoint is of training with a teacher"):
        run(None, "False/checkpoint-4")
    with pytest.raises(StateError, match=r"given a distillation: the checkpoint is of training without a teacher"):
        run(nm.Distillation(encoder(), hidden=LAYERS), "True/checkpoint-4")
    with pytest.raises(StateError, match="saved with another teacher"):
        run(nm.Distillation(encoder(8), hidden=LAYERS), "False/checkpoint-4")


@pytest.mark.parametrize(
    "options", [{"bf16": True}, {"gradient_checkpointing": True}, {"torch_compile": True}], ids=str
)
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing", "ignore:The .grad attribute of a Tensor that is not")
def test_around_other_options(options, tmp_path):
    """The log has it, and it learns: the hidden states come nearer to the teacher's."""
    compiled = {"torch_compile_backend": "eager"} if "torch_compile" in options else {}
    distillation = nm.Distillation(encoder(), hidden=LAYERS)
    callback = NMCallback(nm.LBC("2:4"), distillation=distillation)
    run = trainer(tmp_path, bert(), callback, **options, **compiled, max_steps=12, logging_steps=1)
    run.train()
    found = [logs["nm_distillation"] for logs in run.state.log_history if "nm_distillation" in logs]
    assert len(found) == 12 and found[-1] == distillation.last.item() and found[-1] < 0.8 * found[0]


@pytest.mark.parametrize("options", [{}, {"bf16": True}], ids=str)
def test_a_copy_is_a_network_of_its_own(options, tmp_path):
    """Also where accelerate has replaced the model's forward: at first they give the same, and then they do not."""
    distillation = nm.Distillation("copy", hidden=LAYERS, logits=1.0)
    callback = NMCallback(nm.LBC("2:4"), distillation=distillation)
    run = trainer(tmp_path, calm(), callback, logging_steps=1, max_steps=3, **options)
    run.train()
    first, *others = [logs["nm_distillation"] for logs in run.state.log_history if "nm_distillation" in logs]
    assert first == 0 and min(others) > 0 and ("forward" in vars(distillation.teacher)) == bool(options)


def test_an_epoch_that_fails_puts_everything_back(tmp_path):
    class Stop(transformers.TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            raise KeyboardInterrupt

    distillation = nm.Distillation("copy", hidden=LAYERS)
    run = trainer(tmp_path, model := bert(), NMCallback(nm.LBC("2:4"), distillation=distillation), Stop())
    with pytest.raises(KeyboardInterrupt):
        run.train()
    assert not hooked(model) and not {"compute_loss", "_run_epoch"} & vars(run).keys()
    run.remove_callback(Stop)
    run.train()


def test_what_is_refused(tmp_path):
    """Names when the Trainer is made; a Trainer that is not found, when training begins."""
    with pytest.raises(ConfigError, match="'blocks': it matches no module"):
        trainer(tmp_path, bert(), NMCallback(nm.LBC("2:4"), distillation=nm.Distillation("copy", hidden={"blocks": 1})))
    callback = NMCallback(nm.LBC("2:4"), distillation=nm.Distillation("copy", hidden=LAYERS))
    run = trainer(tmp_path, model := bert(), callback)
    with pytest.raises(AttachError, match="a callback cannot add to a loss"):
        callback.on_train_begin(run.args, run.state, run.control, model=model, optimizer=run.create_optimizer())
    assert not hooked(model)
