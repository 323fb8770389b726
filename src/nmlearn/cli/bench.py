"""``nmlearn bench``: how fast packed weights are on this machine."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from nmlearn.cli import console
from nmlearn.cli.escapes import Parser
from nmlearn.errors import ConfigError, check_name

DESCRIPTION = """Measure packed layers against two dense baselines on this machine: eager, and the best dense (oneDNN
with a pre-packed weight; torch.compile with freezing for whole models). Calls are interleaved and their fast rounds
compared; what is noisy is measured again, and marked if it stays so. Run nothing else at the same time."""
SUITES = ("linear", "decode", "conv", "model")
DTYPES = ("float32", "bfloat16")


def run(arguments: list[str]) -> int:
    """Run the benchmark."""
    given = parser().parse_args(arguments)
    import torch

    from nmlearn.lab import bench
    from nmlearn.lab.train import run_files
    from nmlearn.lab.train.environment import environment
    from nmlearn.native import library as native

    for suite in given.suite:
        check_name("suite", suite, SUITES, "suite")
    bench.check(given.suite or SUITES, given.pattern or bench.PATTERNS)
    if given.threads:
        torch.set_num_threads(given.threads)
    if not native.isa():
        wrong = "the CPU kernels are not built, or do not support this machine"
        raise ConfigError(where="nmlearn bench", given=native.isa(), wrong=wrong, fix="see nmlearn doctor")
    console.out.print(f"{native.isa()} kernels, {torch.get_num_threads()} threads")
    rows: list[dict[str, Any]] = []
    started = environment(torch.device("cpu")) | {"kernels": native.isa()}
    for suite in given.suite or SUITES:
        for dtype in given.dtype:
            with torch.inference_mode():
                for row in bench.SUITES[suite](given.pattern or bench.PATTERNS, getattr(torch, dtype), given.seconds):
                    rows.append(row)
                    _say(row)
            if given.out:  # after each suite, so that an interruption loses nothing measured
                found = {"what": "nmlearn bench", "environment": started, "summary": bench.summary(rows), "rows": rows}
                run_files.write_text(given.out, json.dumps(found, indent=1) + "\n")
    _table(bench.summary(rows))
    return 0


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = Parser(prog="nmlearn bench", description=DESCRIPTION)
    parser.add_argument("suite", nargs="*", help=f"any of {', '.join(SUITES)} (default: all)")
    parser.add_argument("--pattern", nargs="+", help="patterns (default: 2:4 4:8 1:4 2:8 1:8 2:16 1:16)")
    parser.add_argument("--dtype", nargs="+", default=["float32"], choices=DTYPES)
    parser.add_argument("--threads", type=int, default=0, help="number of threads (default: torch's)")
    parser.add_argument("--seconds", type=float, default=1.0, help="how long to time each case")
    parser.add_argument("--out", type=Path, help="JSON file to write all rows to")
    return parser


def _say(row: dict[str, Any]) -> None:
    ratio = row["best_ms"] / row["sparse_ms"]
    times = f"dense {row['best_ms']:8.3f} ms, sparse {row['sparse_ms']:8.3f} ms, {ratio:5.2f} x"
    line = f"{row['suite']:12} {row['case']:34} {row['pattern']:5} {row['dtype']:9} {times}  {row['kernel']}"
    line += f"  NOISY: {row['noise']}" if row["noise"] else ""
    console.out.print(line, soft_wrap=True)


def _table(found: list[dict[str, Any]]) -> None:
    from rich.table import Table

    patterns = list(dict.fromkeys(line["pattern"] for line in found))
    table = Table(title="speed-up over the best dense (over eager)")
    table.add_column("")
    for pattern in patterns:
        table.add_column(pattern, justify="right")
    for name in dict.fromkeys((line["suite"], line["dtype"]) for line in found):
        cells = {
            ln["pattern"]: f"{ln['over_best']:.2f} ({ln['over_eager']:.2f}){' noisy' if ln['noisy'] else ''}"
            for ln in found
            if (ln["suite"], ln["dtype"]) == name
        }
        table.add_row(" ".join(name), *(cells.get(pattern, "") for pattern in patterns))
    console.out.print(table)
    if noisy := sum(line["noisy"] for line in found):
        console.out.print(f"{noisy} cases are noisy: measure them again with nothing else running")
