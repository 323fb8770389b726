"""Reports: one self-contained HTML file for a run or a comparison. Needs neither torch nor a network."""

from __future__ import annotations

from pathlib import Path

__all__ = ["write"]


def write(path: Path | str, out: Path | str | None = None) -> Path:
    """Write the report of a run's folder, a comparison's folder, or a results file.

    Args:
        path: a run's folder (finished or not), a folder with ``results.json`` and ``runs/*/``, a folder of run
            folders, or a results file.
        out: the HTML file; default: report.html in the folder; for a results file, its name with .html (report.html
            next to results.json).

    Returns:
        The file written. An earlier one is replaced atomically.

    Raises:
        ConfigError: there is nothing to report on.
        FormatError: the results file is not from a comparison.
    """
    from nmlearn.lab.report.comparison_page import comparison_page
    from nmlearn.lab.report.run_page import run_page
    from nmlearn.lab.report.source import RunFolder, read
    from nmlearn.lab.train.run_files import sweep, write_text

    path = Path(path)
    target = Path(out) if out is not None else _next_to(path)
    found = read(path)
    html = run_page(found) if isinstance(found, RunFolder) else comparison_page(found, target.parent)
    sweep(target)
    write_text(target, html)
    return target


def _next_to(path: Path) -> Path:
    if path.is_file() and path.name != "results.json":
        return path.with_suffix(".html")
    return (path.parent if path.is_file() else path) / "report.html"
