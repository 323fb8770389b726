"""Write the tables of README.md and docs, between their markers, from results/ and the registry of methods.

python experiments/tables.py            # rewrites them
python experiments/tables.py --check    # exits 1 when a table is not what the results say
"""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "docs/benchmarks.md", "docs/leaderboard.md", "docs/methods.md", "docs/recipes.md")
_MARKED = re.compile(r"(<!-- table (\S+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def main() -> None:
    stale = [page for page in PAGES if (ROOT / page).read_text() != filled(ROOT / page)]
    if "--check" in sys.argv and stale:
        sys.exit(f"not what results/ and nm.METHODS say: {', '.join(stale)}; run python experiments/tables.py")
    for page in stale:
        (ROOT / page).write_text(filled(ROOT / page))


def filled(page: Path) -> str:
    """The page with every marked table regenerated."""
    return _MARKED.sub(lambda match: "\n".join([match[1].rstrip(), *_lines(match[2]), match[4]]), page.read_text())


def _lines(name: str) -> list[str]:
    if name in MADE:
        return MADE[name]()
    if not (ROOT / "results" / f"{name}.json").exists():
        return [f"*Not measured yet: there is no results/{name}.json.*"]
    result = _read(f"{name}.json")
    return KINDS.get(result.get("what"), step_time if "rows" in result else comparison)(result)


def _read(file: str) -> dict[str, Any]:
    return json.loads((ROOT / "results" / file).read_text())


def methods() -> list[str]:
    """A line per registered method: its name in Python and on the command line, and the start of its docstring."""
    from nmlearn.methods import METHODS

    rows = [
        [f"`nm.{kind.__name__}`", f"`{name}`", _first_sentence(kind), "yes" if kind.dense_gradient else "no"]
        for name, kind in METHODS.items()
    ]
    return _markdown(["method", "`--method`", "what it does", "dense gradient"], rows)


def _first_sentence(kind: type) -> str:
    return re.split(r"(?<=\.)\s(?=[A-Z])", " ".join((kind.__doc__ or "").split()), maxsplit=1)[0]


def summary() -> list[str]:
    """README's table: costs and gains of LBC from scratch, with a column per pattern."""
    patterns = ("2:4", "1:4", "1:8", "1:16")
    learned = {row["pattern"]: _gap(row) for row in _read("fashion-compare.json")["table"] if row["method"] == "lbc"}
    steps = {
        row["pattern"]: max(row["ratio"].values()) for row in _read("step_time_cpu.json")["rows"] if row["batch"] == 32
    }
    speed = {
        (line["suite"], line["dtype"], line["pattern"]): f"{line['over_best']:.2f} x"
        for line in _read("kernels_cpu.json")["summary"]
    }
    values = {
        "accuracy minus dense, points: ResNet-8, Fashion-MNIST": lambda p: learned.get(p, ""),
        "time of a training step / dense: ResNet-18": lambda p: f"{steps[p]:.2f}" if p in steps else "",
        "size of a packed float16 weight / dense": lambda p: f"{_packed(p, 16):.3f}",
        "inference speed-up: ResNet-50, float32, batch 1": lambda p: speed["model resnet50", "float32", p],
        "inference speed-up: decoding a token, bfloat16": lambda p: speed["decode", "bfloat16", p],
    }
    return _markdown(["", *patterns], [[name, *map(value, patterns)] for name, value in values.items()])


def _packed(pattern: str, bits: int) -> float:
    """docs/format.md: N values and the smallest index of a group, over M values."""
    n, m = map(int, pattern.split(":"))
    index = min(n * math.ceil(math.log2(m)), m, math.ceil(math.log2(math.comb(m, n))))
    return (n * bits + index) / (m * bits)


def step_time(result: dict[str, Any]) -> list[str]:
    head = ["batch", "pattern", "dense, ms", "its SGD fused, ms", "before", "during", "after", "a removal, ms more"]
    head += ["state, bytes/weight"]
    rows = [
        [
            str(row["batch"]),
            row["pattern"],
            f"{row['dense_ms']:.0f}",
            f"{row['dense_fused_ms']:.0f}" if "dense_fused_ms" in row else "",
            *(f"{row['ratio'][phase]:.3f}" for phase in ("before", "during", "after")),
            f"{row['removal_step_extra_ms']:.0f}",
            f"{row['state_bytes_per_weight']['during']:g}",
        ]
        for row in result["rows"]
    ]
    return _markdown(head, rows)


def small_layers(result: dict[str, Any]) -> list[str]:
    head = ["", "ms", "over dense: median of pairs (quartiles)", "of minima", "calls more"]
    rows = [
        [
            row["case"],
            f"{row['ms']:.1f}",
            "{1:.3f} ({0:.3f} to {2:.3f})".format(*row["ratio_quartiles"]) if row["case"] != "dense" else "",
            f"{row['ratio_of_minima']:.3f}" if row["case"] != "dense" else "",
            str(row["calls_more"]),
        ]
        for row in result["rows"]
    ]
    return _markdown(head, rows)


def comparison(result: dict[str, Any]) -> list[str]:
    language = result["table"][0]["accuracy_mean"] is None
    head = [
        "pattern",
        "method",
        "bits per byte" if language else "accuracy, %",
        "gap to dense (95 % interval)",
        "training FLOPs",
        "bytes/weight",
    ]
    rows = [
        [
            row["pattern"] or "",
            row["method"],
            _mean(row, language),
            _loss_gap(row) if language else _gap(row),
            f"{row['training_flops_ratio']:.2f}",
            f"{row['state_bytes_per_weight']:g}",
        ]
        for row in sorted(result["table"], key=lambda row: (row["pattern"] is not None, _density(row["pattern"])))
    ]
    return _markdown(head, rows)


def kernels(result: dict[str, Any]) -> list[str]:
    """A line per suite and dtype: speed-up over the best dense, and over eager in brackets."""
    found = result["summary"]
    patterns = list(dict.fromkeys(line["pattern"] for line in found))
    rows = []
    for suite, dtype in dict.fromkeys((line["suite"], line["dtype"]) for line in found):
        cells = {line["pattern"]: line for line in found if (line["suite"], line["dtype"]) == (suite, dtype)}
        ratios = [f"{cells[p]['over_best']:.2f} ({cells[p]['over_eager']:.2f})" if p in cells else "" for p in patterns]
        rows.append([f"{suite}, {dtype}", *ratios])
    return _markdown(["", *patterns], rows)


def input_pipeline(result: dict[str, Any]) -> list[str]:
    """The speed of each stage on one core, and of the whole with worker processes."""
    rows = [[row["stage"], f"{row['images_per_cpu_second']:.0f}", ""] for row in result["stages"]]
    for row in result["whole"]:
        name = f"`image-folder`, whole, {row['workers'] or 'no'} worker{'s' * (row['workers'] != 1)}"
        rows.append([name, f"{row['images_per_cpu_second']:.0f}", f"{row['images_per_second']:.0f}"])
    return _markdown(["", "images/s of one core", "images/s"], rows)


def pretrained(result: dict[str, Any]) -> list[str]:
    """A line per method, a column per pattern: accuracy, and the gap to dense."""
    from pretrained import METHODS

    cells = {(row["method"], row["pattern"]): row for row in result["table"]}
    patterns = [p for p in ("2:4", "1:4", "2:8") if any(pattern == p for _, pattern in cells)]
    dense = cells["dense", None]
    rows = [["dense", *[f"{100 * dense['accuracy_mean']:.1f}"] * len(patterns), _seeds(dense)]]
    for method in METHODS:
        found = [cells.get((method, pattern)) for pattern in patterns]
        values = [f"{100 * row['accuracy_mean']:.1f}, {_gap(row, 1)}" if row else "" for row in found]
        if any(values):
            rows.append([method, *values, ", ".join(dict.fromkeys(_seeds(row) for row in found if row))])
    return _markdown(["accuracy, %, and gap to dense", *patterns, "seeds"], rows)


METHODS_IN_GAINS = {"lbc": "LBC", "srste": "SR-STE", "asp": "ASP, data twice"}


def gains(result: dict[str, Any]) -> list[str]:
    """A line per model and pattern: losses of the methods, and gains of LBC's packed model."""
    head = ["model", "pattern", "dense", *METHODS_IN_GAINS.values(), "seeds", "file, MB", "smaller"]
    batches = [str(batch) for batch in result["settings"]["batch"]]
    head += [f"faster, batch {batch}" for batch in batches]
    return _markdown(head, [_gain(row, batches) for row in result["rows"]])


def _gain(row: dict[str, Any], batches: list[str]) -> list[str]:
    sizes = f"{row['dense_bytes'] / 1e6:.1f} -> {row['packed_bytes'] / 1e6:.1f}"
    smaller = f"{row['dense_bytes'] / row['packed_bytes']:.2f} x"
    times = [_faster(row["batch"].get(batch)) for batch in batches]
    return [row["model"], row["pattern"], *quality(row), sizes, smaller, *times]


def quality(row: dict[str, Any]) -> list[str]:
    """From a model's comparison: dense, the methods' mean differences from it, and the number of LBC's seeds."""
    table = _read(row["from"])["table"]
    found = {each["method"]: each for each in table if each["pattern"] in (None, row["pattern"])}
    dense, language = found["dense"], found["dense"].get("accuracy_mean") is None
    key, scale, digits = ("loss_gap_mean", 1 / math.log(2), 3) if language else ("gap_mean", 100, 1)
    level = f"{dense['loss_mean'] / math.log(2):.3f} bits/byte" if language else f"{100 * dense['accuracy_mean']:.1f} %"
    gaps = [f"{scale * found[name][key]:+.{digits}f}" if name in found else "" for name in METHODS_IN_GAINS]
    return [level, *gaps, _seeds(found["lbc"])]


def _faster(times: dict[str, Any] | None) -> str:
    if times is None:
        return "not measured"
    return f"{times['best_ms'] / times['sparse_ms']:.2f} x" if times["layers_packed"] else "no layer packed"


def _seeds(row: dict[str, Any]) -> str:
    return str(row["seeds"] if isinstance(row["seeds"], int) else len(row["seeds"]))


def _mean(row: dict[str, Any], language: bool) -> str:
    key, scale, digits = ("loss", 1 / math.log(2), 3) if language else ("accuracy", 100, 2)
    spread = row[f"{key}_std"]
    value = f"{scale * row[f'{key}_mean']:.{digits}f}"
    return value if spread is None else f"{value} ± {scale * spread:.{digits}f}"


def _loss_gap(row: dict[str, Any]) -> str:
    """In bits per byte, for data with one byte per token."""
    values = (row[f"loss_gap_{key}"] for key in ("mean", "low", "high"))
    return _told([None if value is None else value / math.log(2) for value in values], 3)


def _gap(row: dict[str, Any], digits: int = 2) -> str:
    """In percentage points."""
    values = (row[f"gap_{key}"] for key in ("mean", "low", "high"))
    return _told([None if value is None else 100 * value for value in values], digits)


def _told(values: list[float | None], digits: int) -> str:
    """Mean and interval; empty for dense, only the mean for one seed."""
    mean, low, high = values
    if mean is None:
        return ""
    return f"{mean:+.{digits}f}" + ("" if low is None else f" ({low:+.{digits}f} to {high:+.{digits}f})")


def _density(pattern: str | None) -> float:
    if pattern is None:
        return 1.0
    n, m = map(int, pattern.split(":"))
    return -n / m


def _markdown(head: list[str], rows: list[list[str]]) -> list[str]:
    return ["| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *rows)]


def leaderboard(result: dict[str, Any]) -> list[str]:
    """A line per task, pattern, method and teacher; the smallest gap of each pattern first."""
    if not result["rows"]:
        return ["*No run on test examples is finished yet.*"]
    rows = sorted(result["rows"], key=lambda row: (row["task"], _density(row["pattern"]), -row["gap"]))
    cells = [
        [
            row["task"],
            row["pattern"] or "dense",
            row["method"],
            f"{row['score']:.2f}",
            _told([row["gap"], row["gap_low"], row["gap_high"]], 2),
            str(row["seeds"]),
            f"{row['rate']:g}",
            f"{row['seconds']:.0f}",
        ]
        for row in rows
    ]
    return _markdown(["task", "pattern", "method", "points", "gap to dense (95 %)", "seeds", "rate", "seconds"], cells)


def searches(result: dict[str, Any]) -> list[str]:
    """The held-out points of the search, a line per arm and a column per learning rate."""
    found = [run for run in result["runs"] if run["searching"]]
    rates = sorted({run["rate"] for run in found})
    arms = dict.fromkeys((run["pattern"], run["method"], run["teacher"]) for run in found)
    cells = {(run["pattern"], run["method"], run["teacher"], run["rate"]): f"{run['score']:.2f}" for run in found}
    rows = [
        [pattern or "dense", method + ("+teacher" if teacher else "")]
        + [cells.get((pattern, method, teacher, rate), "") for rate in rates]
        for pattern, method, teacher in sorted(arms, key=lambda arm: (_density(arm[0] or None), *arm[1:]))
    ]
    return _markdown(["pattern", "method", *(f"{rate:g}" for rate in rates)], rows)


KINDS = {
    "leaderboard": leaderboard,
    "leaderboard runs": searches,
    "nmlearn bench": kernels,
    "input pipeline": input_pipeline,
    "pretrained": pretrained,
    "pretrained latency": gains,
    "small layers": small_layers,
}
MADE = {"methods": methods, "summary": summary}


if __name__ == "__main__":
    main()
