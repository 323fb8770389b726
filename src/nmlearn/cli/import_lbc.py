"""``nmlearn import-lbc``: convert a checkpoint of the LBC authors' code to a model file."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING

from nmlearn.cli import console
from nmlearn.cli.conversion import written
from nmlearn.cli.escapes import Parser
from nmlearn.errors import FormatError

if TYPE_CHECKING:
    from nmlearn.files.lbc_authors import Layer

DESCRIPTION = """Convert a checkpoint of the LBC authors' code, which holds dense weights and a score for each
combination, to a final model. Every group gets the zeros of its best combination, and weights get ordinary names. The
file is read as tensors and plain values; no code in it is run."""


def run(arguments: list[str]) -> int:
    """Run the conversion."""
    given = parser().parse_args(arguments)
    from nmlearn.files import lbc_authors as authors
    from nmlearn.files import model_file

    held = _read(given.source)
    keys = {"scores": given.scores, "table": given.table}
    state = authors.state_in(held, given.state)
    found = authors.layers(state, pattern=given.pattern, **keys)
    if given.strict:
        authors.refuse_undecided(found)
    averaged = authors.state_in(held, authors.AVERAGE) if given.ema else None
    tensors = authors.finished(state, found, averaged=averaged, **keys)
    patterns = None if given.dense else {each.name: each.grouping for each in found}
    written(
        given.source,
        given.target,
        lambda: model_file.save(tensors, given.target, packed=not given.dense, patterns=patterns),
    )
    _say(found)
    return 0


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = Parser(prog="nmlearn import-lbc", description=DESCRIPTION)
    add = parser.add_argument
    add("source", metavar="IN", type=Path, help="a checkpoint written by torch.save")
    add("target", metavar="OUT", type=Path, help="the file to write, packed")
    add("--dense", action="store_true", help="write an ordinary safetensors file with the zeros in place")
    add("--strict", action="store_true", help="fail if a group has more than one combination left")
    add("--ema", action="store_true", help="use the weights of model_ema, with the masks of the model")
    add("--pattern", metavar="N:M", help="fail on tables of another pattern; N of M are kept")
    add("--state", metavar="KEY", help="entry with the state dict (default: state_dict or model)")
    add("--scores", metavar="NAME", default="alpha", help="name of a layer's scores (default: alpha)")
    add("--table", metavar="NAME", default="index_list", help="name of a layer's combinations (default: index_list)")
    return parser


def _read(path: Path) -> object:
    """The contents of a file, tensors and plain values only.

    Raises:
        FormatError: the file is damaged, or can only be read by running code.
    """
    import torch

    # The DeiT code stores its command line: a Namespace is a bag of values, and building one runs nothing.
    allowed = torch.serialization.safe_globals([argparse.Namespace])
    with path.open("rb") as file, allowed:
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # the unpickler raises any type on damaged bytes
            wrong = f"it cannot be read as tensors: {_why(error)}"
            fix = "give a checkpoint of torch.save; if you trust this one, save only its state dict and give that"
            raise FormatError(where=str(path), given="IN", wrong=wrong, fix=fix) from error


def _why(error: Exception) -> str:
    """What torch said, without its advice to load the file with its safety switched off."""
    text = str(error)
    code = re.search(r"(?:GLOBAL|global|class|function) (?:<built-in function )?(\w[\w.]+)", text)
    if "eights only load failed" in text or "weights_only" in text:
        return f"it holds {code[1]}, which only running code can build" if code else "it is damaged"
    known = (RuntimeError, EOFError, ValueError, OSError)
    return text.splitlines()[0] if text and isinstance(error, known) else "it is damaged"


def _say(found: list[Layer]) -> None:
    for pattern in dict.fromkeys(each.grouping.pattern for each in found):
        own = [each for each in found if each.grouping.pattern == pattern]
        groups = sum(len(each.scores) for each in own)
        console.out.print(f"{len(own)} weights are {pattern}: {groups:,} groups, all verified")
    for what, count in (
        ("had several combinations left; the best-scored one was used", sum(each.undecided for each in found)),
        ("had none left and are all zeros, as in the trained network", sum(each.empty for each in found)),
    ):
        if count:
            console.out.print(f"{count:,} groups {what}", soft_wrap=True)
