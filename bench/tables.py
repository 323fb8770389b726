"""Write the tables of README.md and of pages in docs/ from the files in results/, between their markers.

python bench/tables.py            # rewrites them
python bench/tables.py --check    # exits 1 when a table is not what the results say
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "docs/benchmarks.md", "docs/recipes.md")
_MARKED = re.compile(r"(<!-- table (\S+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def main() -> None:
    stale = [page for page in PAGES if (ROOT / page).read_text() != filled(ROOT / page)]
    if "--check" in sys.argv and stale:
        sys.exit(f"not what results/ says: {', '.join(stale)}; run python bench/tables.py")
    for page in stale:
        (ROOT / page).write_text(filled(ROOT / page))


def filled(page: Path) -> str:
    """The page with every marked table made anew from its results file."""

    def table(match: re.Match[str]) -> str:
        result = json.loads((ROOT / "results" / f"{match[2]}.json").read_text())
        kind = kernels if result.get("what") == "nmlearn bench" else step_time if "rows" in result else comparison
        kind = input_pipeline if "stages" in result else kind
        lines = kind(result)
        return match[1] + "\n".join(lines) + "\n" + match[4]

    return _MARKED.sub(table, page.read_text())


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


def comparison(result: dict[str, Any]) -> list[str]:
    head = [
        "pattern",
        "method",
        "accuracy, %",
        "gap to dense (95 % interval)",
        "training FLOPs",
        "bytes/weight",
    ]
    rows = [
        [
            row["pattern"] or "",
            row["method"],
            f"{100 * row['accuracy_mean']:.2f} ± {100 * row['accuracy_std']:.2f}",
            _gap(row),
            f"{row['training_flops_ratio']:.2f}",
            f"{row['state_bytes_per_weight']:g}",
        ]
        for row in sorted(result["table"], key=lambda row: (row["pattern"] is not None, _density(row["pattern"])))
    ]
    return _markdown(head, rows)


def kernels(result: dict[str, Any]) -> list[str]:
    """A line a suite and dtype: over the best dense, and over eager in brackets."""
    found = result["summary"]
    patterns = list(dict.fromkeys(line["pattern"] for line in found))
    rows = []
    for suite, dtype in dict.fromkeys((line["suite"], line["dtype"]) for line in found):
        cells = {line["pattern"]: line for line in found if (line["suite"], line["dtype"]) == (suite, dtype)}
        ratios = [f"{cells[p]['over_best']:.2f} ({cells[p]['over_eager']:.2f})" if p in cells else "" for p in patterns]
        rows.append([f"{suite}, {dtype}", *ratios])
    return _markdown(["", *patterns], rows)


def input_pipeline(result: dict[str, Any]) -> list[str]:
    """What one core does of each part, and all of it with worker processes."""
    rows = [[row["stage"], f"{row['images_per_cpu_second']:.0f}", ""] for row in result["stages"]]
    for row in result["whole"]:
        name = f"`image-folder`, whole, {row['workers'] or 'no'} worker{'s' * (row['workers'] != 1)}"
        rows.append([name, f"{row['images_per_cpu_second']:.0f}", f"{row['images_per_second']:.0f}"])
    return _markdown(["", "images/s of one core", "images/s"], rows)


def _gap(row: dict[str, Any]) -> str:
    if row["method"] == "dense":
        return ""
    mean, low, high = (100 * row[f"gap_{key}"] for key in ("mean", "low", "high"))
    return f"{mean:+.2f} ({low:+.2f} to {high:+.2f})"


def _density(pattern: str | None) -> float:
    if pattern is None:
        return 1.0
    n, m = map(int, pattern.split(":"))
    return -n / m


def _markdown(head: list[str], rows: list[list[str]]) -> list[str]:
    return ["| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *rows)]


if __name__ == "__main__":
    main()
