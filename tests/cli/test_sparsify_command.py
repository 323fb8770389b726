"""``nmlearn sparsify``: a pretrained model and a file, in one command."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import nmlearn as nm
import toy
from nmlearn import cli
from nmlearn.cli import console
from nmlearn.cli.sparsify import named
from nmlearn.files import model_file

WORDS = ("red", "green", "blue", "round", "flat", "large", "small", "old")


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    toy.register()
    monkeypatch.setattr(console.out, "width", 120)
    monkeypatch.setattr(console.err, "width", 300)


def pretrained(folder: Path) -> Path:
    """A tiny BERT with a tokenizer, as transformers writes them."""
    transformers = pytest.importorskip("transformers", reason="needs the optional package transformers")
    tokenizers = pytest.importorskip("tokenizers", reason="needs the optional package tokenizers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    transformers.BertModel(transformers.BertConfig(vocab_size=16, **sizes)).save_pretrained(folder)
    vocabulary = {"[PAD]": 0, "[UNK]": 1} | {word: number for number, word in enumerate(WORDS, start=2)}
    own = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    own.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    own.save(str(folder / "tokenizer.json"))
    return folder


def texts(path: Path) -> Path:
    """Texts whose first word tells the class."""
    random = torch.Generator().manual_seed(0)
    draws = torch.randint(8, (240, 4), generator=random).tolist()
    lines = [" ".join(WORDS[i] for i in [n % 2, *draw]) + (",yes" if n % 2 else ",no") for n, draw in enumerate(draws)]
    path.write_text("\n".join(["text,label", *lines]))
    return path


def test_a_model_of_transformers_and_a_csv_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, file = pretrained(tmp_path / "bert"), texts(tmp_path / "texts.csv")
    arguments = ["--pattern", "2:4", "--steps", "60", "--lr", "3e-3", "--out", str(tmp_path / "out")]
    assert cli.main(["sparsify", str(model), str(file), *arguments, "--dense", "true", "--accelerate", "true"]) == 0
    shown = capsys.readouterr().out
    told = ("accuracy, as it came", "accuracy, dense, fine-tuned", "accuracy, sparse", "density 50.00 %", "one example")
    for part in told:
        assert part in shown, shown
    import transformers

    import nmlearn.integrations.transformers  # noqa: F401  its reader

    again = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.json").exists()
    weight = again.bert.encoder.layer[1].output.dense.weight
    assert not nm.Grouping(nm.Pattern("2:4"), 1).violation(weight != 0) and again.config.num_labels == 2
    accuracy = float(shown.split("accuracy, sparse")[1].split("%")[0])
    assert accuracy > 80


def test_a_network_of_ours_and_its_packed_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["toy-conv", "--data", "toy", "--steps", "0", "--out", str(tmp_path / "out"), "--accelerate", "false"]
    assert cli.main(["sparsify", *arguments, "--pattern", "1:4", "--batch_size", "10"]) == 0
    shown = capsys.readouterr().out
    assert "one example" not in shown and "training took" not in shown and "pruning took" in shown
    stored = model_file.stored(tmp_path / "out" / "model.safetensors")
    assert any(one.encoding is not None for one in stored.values())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["toy-conv", "x.parquet"], "none of the kinds"),
        (["./nowhere", "x.csv"], "no config.json"),
        (["toy-conv", "--data", "toy", "--batch_size", "1000"], "less than one batch"),
        (["toy-conv", "--data", "toy", "--pattern", "3:2"], "3:2"),
        (["toy-conv", "--data", "toy", "--steps", "-1"], "steps"),
    ],
)
def test_what_makes_no_sense_is_refused(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["sparsify", *arguments, "--out", str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_what_stands_without_a_name(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "images" / "train").mkdir(parents=True)
    model, images = str(tmp_path / "model"), str(tmp_path / "images")
    of_model = ["--model.name", f"transformers:{model}"]
    assert named([model, images, "--steps", "3"]) == [
        *of_model, "--data.name", "image-folder", "--data.path", images, "--steps", "3",
    ]  # fmt: skip
    assert named([model, "a.csv"])[-2:] == ["--data.options.tokenizer", model]
    assert named(["timm:vit", "a.txt"]) == ["--model.name", "timm:vit", "--data.name", "text", "--data.path", "a.txt"]
    assert named(["--data", "toy"]) == ["--data", "toy"]
