"""2:4 sparsity with the Trainer of Hugging Face's transformers: it only adds a callback.

    python examples/trainer.py [epochs]            # half a minute on one core

It needs the packages transformers and accelerate. The model is a small BERT with random weights and learns to tell
which half of a sentence has the smaller sum, so nothing is downloaded. To resume a run from its last checkpoint:
trainer.train(resume_from_checkpoint=True).
"""

import sys
import tempfile
from pathlib import Path

import torch
import transformers
from torch.utils.data import Dataset

import nmlearn as nm
from nmlearn.integrations.transformers import NMCallback, save_packed

EPOCHS = int(sys.argv[1]) if len(sys.argv) > 1 else 5


class Sentences(Dataset):
    """Token ids, and whether the second half has the smaller sum."""

    def __init__(self, count: int) -> None:
        self.tokens = torch.randint(64, (count, 16))
        first, second = self.tokens.chunk(2, dim=1)
        self.labels = (second.sum(1) < first.sum(1)).long()

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.tokens[i], "labels": self.labels[i]}


def accuracy(evaluated: transformers.EvalPrediction) -> dict[str, float]:
    return {"accuracy": float((evaluated.predictions.argmax(1) == evaluated.label_ids).mean())}


def main(folder: Path) -> None:
    transformers.set_seed(0)
    config = transformers.BertConfig(
        vocab_size=64, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=256
    )
    model = transformers.BertForSequenceClassification(config)
    args = transformers.TrainingArguments(
        str(folder),
        num_train_epochs=EPOCHS,
        per_device_train_batch_size=64,
        learning_rate=1e-3,
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,  # the best of those that already have their patterns
        metric_for_best_model="accuracy",
        logging_steps=50,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),  # torch would warn on a CPU
    )
    callback = NMCallback(nm.LBC("2:4", end=0.5), rules={"*.query": "1:4"})
    trainer = transformers.Trainer(
        model,
        args,
        train_dataset=Sentences(6400),
        eval_dataset=Sentences(1000),
        compute_metrics=accuracy,
        callbacks=[callback],
    )
    print(callback.plan)
    trainer.train()
    trainer.save_model(str(folder / "model"))  # an ordinary folder, zeros in place
    save_packed(model, folder / "packed")
    sizes = [(folder / each / "model.safetensors").stat().st_size for each in ("model", "packed")]
    query, value = (getattr(model.bert.encoder.layer[0].attention.self, name).weight for name in ("query", "value"))
    print(f"finished: {share(query):.0%} of the queries and {share(value):.0%} of the values kept")
    print(f"dense {sizes[0]:,} bytes, packed {sizes[1]:,}; accuracy {trainer.evaluate()['eval_accuracy']:.1%}")


def share(weight: torch.Tensor) -> float:
    return float((weight != 0).float().mean())


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(temporary))
