"""The report of one run: the answer, the curves, what became of each layer, and how to do it again."""

from __future__ import annotations

from nmlearn.lab.report.layers import layer_section
from nmlearn.lab.report.markup import Markup, element, pairs
from nmlearn.lab.report.numbers import SPACE, count, duration, finite, fixed, percent, share, significant, times
from nmlearn.lab.report.page import Section, facts, page
from nmlearn.lab.report.palette import looks
from nmlearn.lab.report.run_charts import sparsity_section, training_section
from nmlearn.lab.report.source import Run


def run_page(run: Run) -> str:
    """The HTML of a run's report, finished or not."""
    sections = [training_section(run), *sparsity_section(run), *layer_section(run), *recipe_sections(run.config, run)]
    return page(_headline(run), _kicker(run), [_notices(run), _facts(run)], sections, run.folder.resolve().name)


def recipe_sections(config: str, run: Run) -> list[Section]:
    """The configuration as it was resolved, and the environment."""
    recipe = (
        element("pre", config, tabindex="0") if config else element("p", "No config.yaml was written.", class_="quiet")
    )
    return [Section("recipe", "Recipe", recipe), environment_section(run.environment)]


def environment_section(environment: dict[str, object]) -> Section:
    """Versions and the machine."""
    if not environment:
        return Section("environment", "Environment", element("p", "No environment was recorded.", class_="quiet"))
    items = [(str(key), _environment_text(value)) for key, value in environment.items() if value is not None]
    return Section("environment", "Environment", pairs("environment", "Where the numbers were made", items))


def _environment_text(value: object) -> str:
    """The environments that a run was resumed in are told by their times."""
    if not isinstance(value, list):
        return str(value)
    return ", ".join(str(each.get("started", "?") if isinstance(each, dict) else each) for each in value)


def result(run: Run) -> tuple[str, str]:
    """The most telling measurement so far, with its name: accuracy, else box AP or bits per byte, else loss."""
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


def _density(run: Run) -> float | None:
    """Of the taken weights: the last one known."""
    known = [run.summary, *reversed(run.of("sparsity"))]
    return next((d for record in known if (d := finite(record.get("density"))) is not None), None)


def _headline(run: Run) -> str:
    value, name = result(run)
    data = run.setting("data")
    place = f" on {data}" if data else ""
    density = _density(run)
    left = "" if density is None else f" at {share(density)} density"
    if not value:
        return f"Nothing measured yet{place}"
    return f"{value} {name}{place}{left}" if run.finished else f"{value} {name}{place} so far{left}"


def _kicker(run: Run) -> str:
    method, pattern = run.setting("method"), run.setting("pattern")
    label = looks([method])[method].label if method else ""
    parts = [label + (f" {pattern}" if pattern and method != "dense" else ""), run.setting("model")]
    seed = run.setting("seed")
    return " · ".join([part for part in parts if part.strip()] + ([f"seed {seed}"] if seed else [])) or "A run"


def _total(run: Run) -> float | None:
    return finite(run.start.get("total_steps"))


def _notices(run: Run) -> list[Markup]:
    """What the reader must know before believing the numbers."""
    told = []
    if not run.finished:
        told.append(
            "This run has not finished: it is still going, or was interrupted. Shown is what it has written so far."
        )
    if finite(run.summary.get("violations")):
        told.append(f"{count(run.summary['violations'])} groups break their pattern: this is not an N:M sparse model.")
    if run.resumed:
        steps = ", ".join(count(step) for step in run.resumed)
        told.append(f"Resumed at step {steps}; steps that were done twice are shown once.")
    if run.unreadable:
        lines = "One line" if run.unreadable == 1 else f"{count(run.unreadable)} lines"
        told.append(f"{lines} of metrics.jsonl could not be read.")
    return [element("p", text, class_="notice") for text in told]


def _facts(run: Run) -> Markup:
    last = run.summary or next(iter(reversed(run.of("eval"))), {})
    value, name = result(run)
    total = _total(run)
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
    return facts(items)


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
