"""The report of one run: the result, the curves, the outcome for each layer, and how to reproduce it."""

from __future__ import annotations

from nmlearn.lab.report.layers import layer_rows, layers_caption
from nmlearn.lab.report.numbers import SPACE, count, duration, finite, fixed, percent, share, significant, times
from nmlearn.lab.report.page import render
from nmlearn.lab.report.run_charts import Clock, choosing, layer_map, method_paint, sparsity_figures, training_figures
from nmlearn.lab.report.source import RunFolder
from nmlearn.lab.report.styles import REFERENCE


def run_page(run: RunFolder) -> str:
    """The HTML of a run's report, finished or not."""
    clock = Clock(run)
    sparsity = sparsity_figures(run, clock)
    sections = {"training": "Training", "sparsity": "Sparsity over time", "layers": "Layers", "recipe": "Recipe"}
    sections["environment"] = "Environment"
    shown = {"sparsity": sparsity, "layers": run.plan}
    return render(
        "run.html",
        title=_headline(run),
        kicker=_kicker(run),
        notices=_notices(run),
        source=run.folder.resolve().name,
        sections={key: name for key, name in sections.items() if shown.get(key, True)},
        facts=_facts(run),
        training=training_figures(run, clock),
        shaded=choosing(run, clock) is not None,
        sparsity=sparsity,
        layer_map=layer_map(run, clock) if sparsity else None,
        caption=layers_caption(run),
        layers=layer_rows(run, clock),
        paint=method_paint(run),
        config=run.config,
        environment=environment_items(run.environment),
    )


def environment_items(environment: dict[str, object]) -> list[tuple[str, str]]:
    """Versions and the machine, as pairs of name and text."""
    return [(str(key), _environment_text(value)) for key, value in environment.items() if value is not None]


def _environment_text(value: object) -> str:
    """A value as text; the environments of resumes are listed by their times."""
    if not isinstance(value, list):
        return str(value)
    return ", ".join(str(each.get("started", "?") if isinstance(each, dict) else each) for each in value)


def result(run: RunFolder) -> tuple[str, str]:
    """The main result so far, with its name: accuracy, else box AP or bits per byte, else loss."""
    last = run.summary or next(iter(reversed(run.of("eval"))), {})
    if finite(last.get("accuracy")) is not None:
        return percent(last["accuracy"]), "accuracy"
    if finite(last.get("box_ap")) is not None:
        return percent(last["box_ap"]), "box AP"
    if finite(last.get("bits_per_byte")) is not None:
        return significant(last["bits_per_byte"], 4), "bits per byte"
    if finite(last.get("loss")) is not None:
        return significant(last["loss"], 4), "loss"
    return "", ""


def _density(run: RunFolder) -> float | None:
    """The last known density of the sparse layers."""
    known = [run.summary, *reversed(run.of("sparsity"))]
    return next((d for record in known if (d := finite(record.get("density"))) is not None), None)


def _headline(run: RunFolder) -> str:
    value, name = result(run)
    data = run.setting("data")
    place = f" on {data}" if data else ""
    density = _density(run)
    left = "" if density is None else f" at {share(density)} density"
    if not value:
        return f"Nothing measured yet{place}"
    return f"{value} {name}{place}{left}" if run.finished else f"{value} {name}{place} so far{left}"


def _kicker(run: RunFolder) -> str:
    method, pattern = run.setting("method"), run.setting("pattern")
    parts = [method + (f" {pattern}" if pattern and method != REFERENCE else ""), run.setting("model")]
    seed = run.setting("seed")
    return " · ".join([part for part in parts if part.strip()] + ([f"seed {seed}"] if seed else [])) or "A run"


def _notices(run: RunFolder) -> list[str]:
    """What the reader must know before trusting the numbers."""
    told = []
    if not run.finished:
        told.append(
            "This run has not finished: it is in progress or was interrupted. This page shows its output so far."
        )
    if finite(run.summary.get("violations")):
        told.append(f"{count(run.summary['violations'])} groups violate their pattern: the model is not N:M sparse.")
    if run.resumed:
        steps = ", ".join(count(step) for step in run.resumed)
        told.append(f"Resumed at step {steps}; repeated steps are shown once.")
    if run.unreadable:
        lines = "One line" if run.unreadable == 1 else f"{count(run.unreadable)} lines"
        told.append(f"{lines} of metrics.jsonl could not be read.")
    return told


def _facts(run: RunFolder) -> list[tuple[str, str]]:
    """The key figures."""
    last = run.summary or next(iter(reversed(run.of("eval"))), {})
    value, name = result(run)
    total = finite(run.start.get("total_steps"))
    items = [(name.capitalize(), value)] if value else []
    for key, label, write in EXTRA:
        if finite(last.get(key)) is not None and label != name.capitalize():
            items.append((label, write(last[key])))
    if (density := _density(run)) is not None:
        items.append(("Density, sparse layers", share(density)))
    seconds = run.summary.get("seconds", next((e.get("seconds") for e in reversed(run.of("train"))), None))
    items.append(("Training time", duration(seconds)))
    for key, label, write in COST:
        if finite(run.summary.get(key)) is not None:
            items.append((label, write(run.summary[key])))
    if total:
        items.append((f"Steps of {count(total)}", count(run.last_step)))
        if not run.finished:
            items.append(("Done", percent(run.last_step / total, 0)))
    return items


def _bytes(value: object) -> str:
    return fixed(value, 1) + SPACE + "B"


EXTRA = (
    ("ema_accuracy", "Averaged model", percent),
    ("box_ap", "Box AP", percent),
    ("mask_ap", "Mask AP", percent),
    ("bits_per_byte", "Bits per byte", lambda value: significant(value, 4)),
    ("loss", "Evaluation loss", lambda value: significant(value, 3)),
)
COST = (
    ("training_flops_ratio", "Training FLOPs of dense", times),
    ("state_bytes_per_weight", "State per weight", _bytes),
)
