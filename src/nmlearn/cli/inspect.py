"""``nmlearn inspect``: show the patterns of the zeros in a file."""

from __future__ import annotations

import argparse
import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nmlearn.cli import console
from nmlearn.cli.conversion import locate, patterns
from nmlearn.cli.escapes import Parser
from nmlearn.errors import ConfigError
from nmlearn.lab.train.run_files import read_json, refuse
from nmlearn.maths.pattern import Pattern

if TYPE_CHECKING:
    from torch import Tensor

    from nmlearn.files.model_file import Stored

EXIT_BAD = 1
DESCRIPTION = """Show the tightest N:M pattern that the zeros of each weight satisfy along the input dimension (M of 2,
4, 8, 16, 32, 64). For a packed file, also show the stored pattern and index code. Where neither a run's plan nor a
packed file records which dimension that is, it is inferred from the zeros. Tensors with infinite or
NaN values are named.

With --check the weights must satisfy a pattern: if one does not, the exit code is 1 and the first bad group is named.
In a run folder or a model written by nmlearn the sparse weights are checked; in other files, all weights that M
divides."""


@dataclass(frozen=True)
class Weight:
    """A weight in a file."""

    name: str
    tensor: Tensor
    axis: int | None
    """The input axis recorded in the run's plan or the file; None where neither records it."""
    pattern: str | None
    """The pattern recorded in the run's plan or the file; None where neither does, or for a dense weight."""
    nbytes: int
    """Its size in the file; a further name of a tied weight takes no bytes."""
    stored: str
    """Pattern and index code of a packed weight."""

    def along(self, pattern: Pattern | None) -> int:
        """Its input axis, inferred from the zeros where it is not recorded; an expected pattern helps."""
        from nmlearn.maths.zeros import input_axis

        return input_axis(self.tensor != 0, pattern) if self.axis is None else self.axis


def run(arguments: list[str]) -> int:
    """Run the inspection; 1 when a check failed."""
    given = parser().parse_args(_check_apart(arguments))
    tensors = [tensor for tensor in _read(given.path) if fnmatch.fnmatchcase(tensor.name, given.only)]
    weights = [tensor for tensor in tensors if tensor.tensor.ndim > 1]
    if given.check is None:
        console.out.print(_table(weights))
        _show_not_finite(tensors)
        return 0
    return _check(weights, given)


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = Parser(prog="nmlearn inspect", description=DESCRIPTION)
    parser.add_argument("path", type=Path, help="a safetensors file or a run folder")
    parser.add_argument(
        "--check",
        metavar="N:M",
        nargs="?",
        const="plan",
        help="fail unless this pattern holds; without N:M, unless each weight has the pattern it was trained with",
    )
    parser.add_argument("--only", metavar="GLOB", default="*", help="only weights whose name matches")
    return parser


def _check_apart(arguments: list[str]) -> list[str]:
    """--check takes the argument after it only when that looks like a pattern, not when it is the path."""
    following = [*arguments, ""][1:]
    return [
        f"{argument}=plan" if argument == "--check" and (":" not in after or Path(after).exists()) else argument
        for argument, after in zip(arguments, following, strict=True)
    ]


def _read(path: Path) -> list[Weight]:
    """The floating-point tensors, in the plan's order if there is one, else in the file's."""
    from nmlearn.files import model_file

    file = locate(path)
    tensors, stored = model_file.load(file), model_file.stored(file)
    plan = path / "plan.json"
    if path.is_dir() and plan.exists():
        rows = _planned(plan, tensors)
    else:
        rows = {name: {"pattern": pattern} for name, pattern in patterns(file).items()}
    names = [name for name in rows if name in tensors] + [name for name in tensors if name not in rows]
    return [
        _weight(name, tensors[name], stored.get(name), rows.get(name, {}))
        for name in names
        if tensors[name].is_floating_point()
    ]


def _planned(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
    """The rows of a run's plan, by the weight's name.

    Raises:
        FormatError: it has none, or one that is not of a plan, or does not fit its weight.
    """
    rows = read_json(path).get("rows")
    if not isinstance(rows, list):
        refuse(path, "it has no rows")
    for row in rows:
        if not isinstance(row, dict) or not isinstance(name := row.get("name"), str):
            refuse(path, f"a row is no table with a name: {row!r:.80}")
        if row.get("pattern") is not None:
            Pattern(row["pattern"])
        axis = row.get("axis")
        if axis is not None and name in tensors and (type(axis) is not int or not 0 <= axis < tensors[name].ndim):
            refuse(path, f"{name!r} has {tensors[name].ndim} dimensions, and no axis {axis!r:.40}")
    return {row["name"]: row for row in rows}


def _weight(name: str, tensor: Tensor, stored: Stored | None, row: dict[str, Any]) -> Weight:
    encoding = stored.encoding if stored else None
    axis = encoding.grouping.axis if encoding else row.get("axis")
    how = f"{encoding.grouping.pattern} {encoding.code}" if encoding else ""
    return Weight(name, tensor, axis, row.get("pattern"), stored.nbytes if stored else 0, how)


def _table(weights: list[Weight]) -> Any:
    from nmlearn.maths.zeros import tightest

    planned, packed = any(weight.pattern for weight in weights), any(weight.stored for weight in weights)
    more = [*(["planned"] if planned else []), *(["stored"] if packed else [])]
    columns = ("weight", "shape", "found", *more, "density", "bytes")
    table = console.table(*columns, right="density,bytes")
    for weight in weights:
        kept_w = weight.tensor != 0
        axis = weight.along(Pattern(weight.pattern) if weight.pattern else None)
        pattern = tightest(kept_w, axis)
        density = int(kept_w.sum()) / max(1, kept_w.numel())
        table.add_row(
            console.name(weight.name),
            "×".join(map(str, weight.tensor.shape)),
            f"{pattern}{_said(axis)}" if pattern else "dense",
            *([console.name(str(weight.pattern or "dense"))] if planned else []),
            *([weight.stored or "dense"] if packed else []),
            console.percent(density),
            f"{weight.nbytes:,}",
            style=None if pattern else "dim",
        )
    return table


def _show_not_finite(tensors: list[Weight]) -> None:
    for each in tensors:
        wide = each.tensor.float() if each.tensor.dtype.itemsize == 1 else each.tensor  # isfinite takes none of 8 bits
        if bad := int((~wide.isfinite()).sum()):
            text = f" {console.name(each.name)}: {bad:,} of {wide.numel():,} values are not finite"
            console.out.print(console.say("yellow", "note", text), soft_wrap=True)


def _check(weights: list[Weight], given: argparse.Namespace) -> int:
    from nmlearn.maths.groups import Grouping

    wanted = _wanted(weights, given)
    for weight, pattern, axis in wanted:
        why = Grouping(pattern, axis).violation(weight.tensor != 0)
        if why:
            console.out.print(console.say("red", "bad", f" {console.name(weight.name)}"), soft_wrap=True)
            console.out.print(f"    {why}", soft_wrap=True)
            return EXIT_BAD
    console.out.print(console.say("green", "good", f" every group of {len(wanted)} weights satisfies its pattern"))
    for weight, _, axis in wanted:
        if weight.axis is None and axis != 1:  # inferred; the reader may know better
            console.out.print(
                console.say("yellow", "note", f" {console.name(weight.name)}:{_said(axis)}"), soft_wrap=True
            )
    return 0


def _said(axis: int) -> str:
    """Empty for the usual axis."""
    return "" if axis == 1 else f" along axis {axis}"


def _wanted(weights: list[Weight], given: argparse.Namespace) -> list[tuple[Weight, Pattern, int]]:
    """The weights to check, each with its pattern and its axis."""
    planned = [weight for weight in weights if weight.pattern]
    asked = None if given.check == "plan" else Pattern(given.check)
    chosen = planned if planned or asked is None else weights
    patterns = [(weight, asked or Pattern(str(weight.pattern))) for weight in chosen]
    wanted = [(weight, pattern, weight.along(pattern)) for weight, pattern in patterns]
    if not planned:
        wanted = [one for one in wanted if one[0].tensor.shape[one[2]] % one[1].m == 0]
    if not wanted:
        raise ConfigError(
            where="inspect --check",
            given=given.path,
            wrong="no weight to check: none is sparse, or M divides none",
            fix="give a pattern, another --only, or a run folder with sparse weights",
        )
    return wanted
