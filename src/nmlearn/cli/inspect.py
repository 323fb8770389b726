"""``nmlearn inspect``: the patterns that the zeros of a file show."""

from __future__ import annotations

import argparse
import fnmatch
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nmlearn.cli import console
from nmlearn.errors import ConfigError, FormatError
from nmlearn.pattern import Pattern
from nmlearn.train.files import read_json

if TYPE_CHECKING:
    from torch import Tensor

SIZES = (4, 8, 16, 32)
EXIT_BAD = 1
DESCRIPTION = """Show of each weight the tightest pattern N:M that its zeros fulfil along the input dimension (M of 4,
8, 16, 32).

With --check the weights must fulfil a pattern: the exit code is 1 when one does not, and the first bad group is
named. In a run folder or a model of nmlearn's these are the weights that were taken, in another file all that M
divides."""
PATTERNS = "nmlearn.patterns"  # in a file's metadata: JSON, weight -> pattern


@dataclass(frozen=True)
class Weight:
    """A weight of a file, and the axis that runs along its inputs."""

    name: str
    tensor: Tensor
    axis: int
    pattern: str | None
    """What the run's plan or the file says it has; None where neither says, or for a dense weight."""


def run(words: list[str]) -> int:
    """Inspect as the words say; 1 when a check failed."""
    given = parser().parse_args(_check_apart(words))
    weights = [weight for weight in _read(given.path) if fnmatch.fnmatchcase(weight.name, given.only)]
    if given.check is None:
        console.out.print(_table(weights))
        return 0
    return _check(weights, given)


def parser() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = argparse.ArgumentParser(prog="nmlearn inspect", description=DESCRIPTION)
    parser.add_argument("path", type=Path, help="a safetensors file or a run folder")
    parser.add_argument(
        "--check",
        metavar="N:M",
        nargs="?",
        const="plan",
        help="fail unless this pattern holds; without N:M, unless each weight has the pattern it was trained with",
    )
    parser.add_argument("--only", metavar="GLOB", default="*", help="look only at weights whose name matches")
    return parser


def _check_apart(words: list[str]) -> list[str]:
    """--check takes the word after it only when that looks like a pattern, not when it is the path."""
    following = [*words[1:], ""]
    return [
        f"{word}=plan" if word == "--check" and (":" not in after or Path(after).exists()) else word
        for word, after in zip(words, following, strict=True)
    ]


def tightest(tensor: Tensor, axis: int) -> Pattern | None:
    """The pattern of lowest density, then smallest M, that the zeros along an axis fulfil; None for a dense weight."""
    from nmlearn.groups import Grouping

    found = []
    for size in SIZES:
        if tensor.shape[axis] % size == 0:
            most = int(Grouping(Pattern(size, size), axis).view(tensor != 0).sum(-1).max())
            found.append(Pattern(max(1, most), size))
    sparse = [pattern for pattern in found if pattern.n < pattern.m]
    return min(sparse, key=lambda pattern: (pattern.density, pattern.m), default=None)


def bad_group(tensor: Tensor, axis: int, pattern: Pattern) -> tuple[str, int, int] | None:
    """The first group with more than N non-zeros, as a Python index, how many it has, and how many groups are bad."""
    from nmlearn.groups import Grouping

    counts = Grouping(pattern, axis).view(tensor != 0).sum(-1)
    bad = (counts > pattern.n).nonzero()
    if len(bad) == 0:
        return None
    place = bad[0].tolist()
    start = place[axis] * pattern.m
    index = [str(i) for i in place]
    index[axis] = f"{start}:{start + pattern.m}"
    return ", ".join(index), int(counts[tuple(place)]), len(bad)


def _read(path: Path) -> list[Weight]:
    """The weights of two or more dimensions, in the plan's order if there is one, else in the file's."""
    from safetensors import SafetensorError, safe_open

    file = path / "model" / "model.safetensors" if path.is_dir() else path
    try:
        with safe_open(file, "pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            patterns = json.loads((opened.metadata() or {}).get(PATTERNS, "{}"))
    except (OSError, SafetensorError, ValueError) as error:
        raise FormatError(
            where=str(file), given="this file", wrong=f"cannot be read: {error}", fix="give a safetensors file or a run"
        ) from error
    plan = path / "plan.json"
    rows = {name: {"pattern": pattern} for name, pattern in patterns.items()}
    if path.is_dir() and plan.exists():
        rows = {row["name"]: row for row in read_json(plan)["rows"]}
    names = [name for name in rows if name in tensors] + [name for name in tensors if name not in rows]
    return [
        Weight(name, tensors[name], _axis(tensors[name], rows.get(name, {})), rows.get(name, {}).get("pattern"))
        for name in names
        if tensors[name].ndim > 1 and tensors[name].is_floating_point()
    ]


def _axis(tensor: Tensor, row: dict[str, Any]) -> int:
    """Inputs run along dimension 1, but along the last one in stacked experts, the only other weights of three."""
    if tensor.ndim != 3 or "Conv" in row.get("kind", ""):
        return 1
    if "kind" in row:
        return 2
    found = {axis: pattern for axis in (1, 2) if (pattern := tightest(tensor, axis)) is not None}
    return min(found, key=lambda axis: found[axis].density, default=1)


def _table(weights: list[Weight]) -> Any:
    planned = any(weight.pattern for weight in weights)
    columns = ("weight", "shape", "found", *(["planned"] if planned else []), "density", "bytes")
    table = console.table(*columns, right="density,bytes")
    for weight in weights:
        pattern = tightest(weight.tensor, weight.axis)
        density = float(weight.tensor.count_nonzero()) / max(1, weight.tensor.numel())
        table.add_row(
            weight.name,
            "×".join(map(str, weight.tensor.shape)),
            str(pattern) if pattern else "dense",
            *([weight.pattern or "dense"] if planned else []),
            console.percent(density),
            f"{weight.tensor.nbytes:,}",
            style=None if pattern else "dim",
        )
    return table


def _check(weights: list[Weight], given: argparse.Namespace) -> int:
    wanted = _wanted(weights, given)
    for weight, pattern in wanted:
        bad = bad_group(weight.tensor, weight.axis, pattern)
        if bad is not None:
            index, count, number = bad
            console.out.print(console.say("red", "bad", f" {weight.name}"), soft_wrap=True)
            console.out.print(f"    {number:,} groups are not {pattern}; the first is [{index}] with {count} non-zeros")
            return EXIT_BAD
    console.out.print(console.say("green", "good", f" every group of {len(wanted)} weights fulfils its pattern"))
    return 0


def _wanted(weights: list[Weight], given: argparse.Namespace) -> list[tuple[Weight, Pattern]]:
    """The weights to check, each with its pattern."""
    planned = [(weight, Pattern(weight.pattern)) for weight in weights if weight.pattern]
    if given.check == "plan":
        wanted = planned
    elif planned:
        wanted = [(weight, Pattern(given.check)) for weight, _ in planned]
    else:
        pattern = Pattern(given.check)
        wanted = [(weight, pattern) for weight in weights if weight.tensor.shape[weight.axis] % pattern.m == 0]
    if not wanted:
        raise ConfigError(
            where="inspect --check",
            given=given.path,
            wrong="no weight to check: none was taken, or M divides none",
            fix="give a pattern, another --only, or a run folder with sparse weights",
        )
    return wanted
