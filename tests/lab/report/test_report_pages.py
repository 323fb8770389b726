"""Reports of runs and comparisons: whole files from whole, half-written and hostile folders."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

import report_examples as examples
from nmlearn.errors import ConfigError, FormatError
from nmlearn.lab import report
from nmlearn.lab.report.source import read, read_run
from nmlearn.lab.report.styles import COLOURS
from nmlearn.methods import METHODS

VOID = frozenset({"br", "col", "hr", "meta", "wbr"})


class Page(HTMLParser):
    """A page's elements; fails where tags do not close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.words.append(data)

    @property
    def text(self) -> str:
        """What a reader sees."""
        return " ".join(" ".join(self.words).split())


def page(path: Path) -> Page:
    """The report of a path, read back and checked for what holds of every report."""
    written = report.write(path)
    text = written.read_text(encoding="utf-8")
    found = Page(text)
    assert found.tags[0] == ("html", {"lang": "en"})
    ids = [attributes["id"] for _, attributes in found.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in found.tags:
        assert tag not in ("link", "img", "iframe", "object", "base", "form")
        assert "src" not in attributes and "style" not in attributes
        assert not any(name.startswith("on") for name in attributes)
        assert not re.match(r"[a-z]+:|//", attributes.get("href") or ""), attributes
        for reference in ("aria-labelledby", "aria-describedby"):
            assert set((attributes.get(reference) or "").split()) <= set(ids)
    assert sum(tag == "h1" for tag, _ in found.tags) == 1
    assert sum(tag == "table" for tag, _ in found.tags) == sum(tag == "caption" for tag, _ in found.tags)
    assert "nan" not in found.text.lower().split() and "None" not in found.text.split()
    return found


def lines(folder: Path) -> list[dict[str, Any]]:
    """The events of a run's folder."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def rewrite(folder: Path, events: list[dict[str, Any]]) -> None:
    """Put other events in a run's folder."""
    (folder / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))


def test_a_finished_run_tells_its_answer_first(tmp_path: Path) -> None:
    found = page(examples.write_run(tmp_path))
    assert "91.72 % accuracy on cifar10 at 50.0 % density" in found.text
    assert "lbc 2:4 · resnet20 · seed 0" in found.text
    assert "20 of 22 layers are sparse" in found.text
    assert "3 input channels, not a multiple of 4" in found.text
    assert "The same in all 20 sparse layers." in found.text
    assert "augment: crop-flip" in found.text and "Example CPU" in found.text
    assert "has not finished" not in found.text
    assert (tmp_path / "report.html").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["config.yaml", "env.json", "metrics.jsonl", "plan.json", "report.html", "summary.json"]
    )


def test_a_run_on_its_way_says_so(tmp_path: Path) -> None:
    found = page(examples.write_run(tmp_path, method="gradual", done=0.37))
    assert "has not finished" in found.text and "so far" in found.text
    assert "gradual 2:4 · resnet20 · seed 0" in found.text  # from config.yaml: there is no summary
    assert "Steps of 46,800" in found.text and "37 %" in found.text
    assert "1 lines of metrics.jsonl" not in found.text
    assert "one line of metrics.jsonl could not be read" in found.text.lower()


@pytest.mark.parametrize(
    "kept", [(), ("config.yaml",), ("metrics.jsonl",), ("plan.json",), ("env.json", "config.yaml")]
)
def test_any_part_may_be_missing(tmp_path: Path, kept: tuple[str, ...]) -> None:
    examples.write_run(tmp_path)
    for part in ("config.yaml", "env.json", "plan.json", "metrics.jsonl", "summary.json"):
        if part not in kept:
            (tmp_path / part).unlink()
    if not kept:
        with pytest.raises(ConfigError, match="neither a run nor a comparison"):
            report.write(tmp_path)
        return
    assert "has not finished" in page(tmp_path).text or kept == ("metrics.jsonl",)


def test_a_run_that_has_only_begun_has_a_report(tmp_path: Path) -> None:
    examples.write_run(tmp_path, done=0.0)
    assert "Nothing measured yet on cifar10" in page(tmp_path).text


def test_a_dense_run_shows_no_sparsity(tmp_path: Path) -> None:
    found = page(examples.write_run(tmp_path, method="dense"))
    assert "Sparsity over time" not in found.text
    assert "dense · resnet20" in found.text


def test_steps_done_twice_are_shown_once(tmp_path: Path) -> None:
    events = lines(examples.write_run(tmp_path))
    half = next(i for i, event in enumerate(events) if event["step"] > 20000)
    again = {**events[0], "step": 15000, "resumed": True}
    rewrite(tmp_path, [*events[:half], again, *(event for event in events if event["step"] > 15000)])
    run = read_run(tmp_path)
    steps = [event["step"] for event in run.of("train")]
    assert steps == sorted(set(steps)) and run.resumed == [15000]
    assert "Resumed at step 15,000" in page(tmp_path).text
    rewrite(tmp_path, [*events[:half], *events])  # started again in the same folder
    assert read_run(tmp_path).events == events and read_run(tmp_path).resumed == []


def test_losses_that_are_no_numbers_are_gaps(tmp_path: Path) -> None:
    events = lines(examples.write_run(tmp_path))
    for event in events[100:]:
        event["loss"] = float("nan")
    events[50]["step"] = None
    rewrite(tmp_path, [*events, {"event": "sparsity", "layers": [1, 2]}, {"event": "eval", "accuracy": "high"}])
    page(tmp_path)


def test_a_language_run_is_told_in_bits_per_byte(tmp_path: Path) -> None:
    events = lines(examples.write_run(tmp_path, data="wordnet", model="gpt"))
    for event in events:
        if "accuracy" in event:
            event |= {"accuracy": None, "bits_per_byte": 1.2345}
    rewrite(tmp_path, events)
    (tmp_path / "summary.json").unlink()
    found = page(tmp_path)
    assert "1.234 bits per byte" in found.text or "1.235 bits per byte" in found.text
    assert "Bits per byte" in found.text


def test_layers_with_other_patterns_and_names_as_markup(tmp_path: Path) -> None:
    evil = '<script>alert("1")</script>'
    rows = [examples._row(f"{evil}{i}", "Linear", [64, 64], ["2:4", "1:4", "4:8", "1:16"][i % 4]) for i in range(60)]
    rows.append(examples._row(evil, "<b>", [1], None, reason=evil))
    examples.write_run(tmp_path, rows=rows, model=evil, data=evil)
    (tmp_path / "config.yaml").write_text(f"model: {evil}\n# \ud7ff & <i>\n")
    found = page(tmp_path)
    assert evil in found.text
    assert sum(tag == "script" for tag, _ in found.tags) == 1
    assert not any(tag in ("b", "i") and not attributes for tag, attributes in found.tags if tag == "i")


def test_what_is_no_text_is_replaced(tmp_path: Path) -> None:
    examples.write_run(tmp_path)
    (tmp_path / "env.json").write_text('{"cpu": "\\ud800\\u0000 fast"}')
    assert "\ufffd\ufffd fast" in page(tmp_path).text


def test_a_comparison_tells_its_answer_first(tmp_path: Path) -> None:
    found = page(examples.write_comparison(tmp_path))
    assert "Highest mean accuracy: lbc at 1:4, 1:8 and 1:16" in found.text
    assert "5 methods · 3 patterns · 5 paired seeds" in found.text
    assert "65 runs" in found.text
    assert "the two intervals overlap" in found.text
    record = json.loads((tmp_path / "results.json").read_text())
    row = next(row for row in record["table"] if row["method"] == "lbc" and row["pattern"] == "1:8")
    assert f"{100 * row['accuracy_mean']:.2f} ± {100 * row['accuracy_std']:.2f}" in found.text
    assert f"\u2212{-100 * row['gap_low']:.2f} to \u2212{-100 * row['gap_high']:.2f}" in found.text
    headings = [attributes["id"] for tag, attributes in found.tags if tag == "h2"]
    assert headings == ["h-result", "h-cost", "h-curves", "h-runs", "h-recipe", "h-environment"]
    seeds = sum(attributes.get("class") == "seed" for _, attributes in found.tags)
    assert seeds == 4 * 3 * 5


def test_results_files_side_by_side_keep_their_own_reports(tmp_path: Path) -> None:
    examples.write_comparison(tmp_path, folders=False, name="fashion.json")
    assert report.write(tmp_path / "fashion.json") == tmp_path / "fashion.html"
    assert "Curves" not in (tmp_path / "fashion.html").read_text().split("<nav")[1].split("</nav")[0]
    out = tmp_path / "other" / "page.html"
    assert report.write(tmp_path / "fashion.json", out) == out and out.is_file()
    examples.write_comparison(tmp_path, folders=False)
    assert report.write(tmp_path / "results.json") == tmp_path / "report.html"


def test_run_reports_are_linked_where_they_lie(tmp_path: Path) -> None:
    examples.write_comparison(tmp_path, seeds=1)
    report.write(tmp_path / "runs" / "lbc-1of4-s0")
    links = [attributes["href"] for tag, attributes in page(tmp_path).tags if tag == "a"]
    assert [link for link in links if link and not link.startswith("#")] == ["runs/lbc-1of4-s0/report.html"]


def test_a_comparison_on_its_way_is_made_of_its_run_folders(tmp_path: Path) -> None:
    examples.write_comparison(tmp_path, seeds=2)
    (tmp_path / "results.json").unlink()
    examples.write_run(
        tmp_path / "runs" / "lbc-1of4-s9", pattern="1:4", seed=9, done=0.4, epochs=8, steps_per_epoch=156
    )
    found = page(tmp_path)
    assert "No results file yet: 26 runs have finished." in found.text
    assert "Highest mean accuracy" in found.text
    page(tmp_path / "runs")  # the folder of run folders does as well


def test_a_single_seed_has_no_interval_and_names_no_winner(tmp_path: Path) -> None:
    found = page(examples.write_comparison(tmp_path, seeds=1))
    assert "interval" not in found.text and "±" not in found.text and "std" not in found.text
    assert "oneshot, gradual, srste and lbc at 1:4, 1:8 and 1:16" in found.text
    assert "No best method at 1:4, 1:8 and 1:16" in found.text
    assert "Best mean" not in found.text and "Highest" not in found.text and "Next:" not in found.text
    assert not any(attributes.get("class") == "best" for _, attributes in found.tags)
    assert not any(attributes.get("class") in ("seed", "whisker") for _, attributes in found.tags)


def test_intervals_are_enough_to_name_a_winner(tmp_path: Path) -> None:
    examples.write_comparison(tmp_path, folders=False)
    record = json.loads((tmp_path / "results.json").read_text())
    for row in record["table"]:
        del row["accuracy_std"], row["seconds_median"], row["training_flops_ratio"], row["seeds"]
    (tmp_path / "results.json").write_text(json.dumps(record))
    found = page(tmp_path)
    assert "Highest mean accuracy: lbc" in found.text and "95 % interval" in found.text
    assert "h-cost" not in [attributes.get("id") for _, attributes in found.tags]


def test_names_of_a_comparison_as_markup(tmp_path: Path) -> None:
    evil = '<script>alert("1")</script>&'
    examples.write_comparison(tmp_path, seeds=2, folders=False)
    record = json.loads((tmp_path / "results.json").read_text())
    for row in [*record["runs"], *record["table"]]:
        row["pattern"] = row["pattern"] and evil + row["pattern"]
        row["method"] = row["method"] if row["method"] == "dense" else evil + row["method"]
    record |= {"name": evil, "recipe": {evil: {evil: evil}}, "environment": {evil: evil}, "source_commit": evil}
    record["failures"] = [{"run": evil, "error": evil}]
    (tmp_path / "results.json").write_text(json.dumps(record))
    found = page(tmp_path)
    assert found.text.count(evil) > 50
    assert sum(tag == "script" for tag, _ in found.tags) == 1


def test_a_page_is_small(tmp_path: Path) -> None:
    for folder in (examples.write_run(tmp_path / "run"), examples.write_comparison(tmp_path / "comparison")):
        assert report.write(folder).stat().st_size <= 67_000


def test_no_method_is_named_in_the_report() -> None:
    room = resources.files("nmlearn.lab.report")
    files = [*room.iterdir(), *room.joinpath("templates").iterdir()]
    text = "".join(file.read_text(encoding="utf-8") for file in files if file.is_file())
    names = [name for name in METHODS if name != "dense"]
    assert len(text) > 50_000
    assert [name for name in names if re.search(rf"[\"'-]{name}[\"';:{{ ]", text)] == []


def test_a_comparison_without_accuracy_compares_losses(tmp_path: Path) -> None:
    examples.write_comparison(tmp_path, folders=False)
    record = json.loads((tmp_path / "results.json").read_text())
    for run in record["runs"]:
        run["accuracy"] = None
    del record["table"]
    record["failures"] = [{"run": "lbc-1of4-s7", "error": "<out of memory>"}]
    (tmp_path / "results.json").write_text(json.dumps(record))
    found = page(tmp_path)
    assert "Lowest mean loss: lbc" in found.text
    assert "Failed: lbc-1of4-s7: <out of memory>" in found.text


@pytest.mark.parametrize("runs", [[], [{"method": "dense"}], [{"method": "lbc", "pattern": "2:4", "accuracy": 0.5}]])
def test_a_comparison_of_hardly_anything(tmp_path: Path, runs: list[dict[str, Any]]) -> None:
    (tmp_path / "results.json").write_text(json.dumps({"runs": runs}))
    page(tmp_path)


def test_what_is_no_report_material_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file or folder"):
        report.write(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="neither a run nor a comparison"):
        report.write(tmp_path)
    (tmp_path / "other.json").write_text("[1]")
    with pytest.raises(FormatError, match="no list of runs"):
        report.write(tmp_path / "other.json")
    (tmp_path / "other.json").write_text("{")
    with pytest.raises(FormatError, match="cannot be read"):
        read(tmp_path / "other.json")


def test_names_of_an_unfinished_run_come_from_any_yaml_style(tmp_path: Path) -> None:
    for text in (
        "data: {name: cifar10, path: x}\n",
        "data:\n  path: x\n  name: 'cifar10'\n",
        'data: "cifar10"  # set\n',
    ):
        (tmp_path / "config.yaml").write_text("seed: 3\n" + text + 'method:\n  name: lbc\n  pattern: "1:16"\n')
        run = read_run(tmp_path)
        assert [run.setting(key) for key in ("data", "seed", "method", "pattern")] == ["cifar10", "3", "lbc", "1:16"]


def test_reporting_needs_no_torch() -> None:
    script = (
        "import sys, nmlearn.lab.report.run_page, nmlearn.lab.report.comparison_page; sys.exit('torch' in sys.modules)"
    )
    environment = {"PYTHONPATH": ":".join(sys.path)}
    assert subprocess.run([sys.executable, "-c", script], env=environment, check=False).returncode == 0


def luminance(colour: str) -> float:
    """WCAG 2: relative luminance of #rrggbb."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    r, g, b = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


@pytest.mark.parametrize("scheme", [0, 1])
def test_colours_stand_out_in_both_schemes(scheme: int) -> None:
    style = resources.files("nmlearn.lab.report").joinpath("style.css").read_text(encoding="utf-8")
    block = re.findall(r":root \{([^}]*)\}", style)[scheme]
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})\b", block))
    ground = luminance(colours["page"])
    assert {name for name in colours if name.startswith("m-")} == {"m-dense", *(f"m-{i}" for i in range(COLOURS))}
    for name, colour in colours.items():
        if name in ("ink", "muted", "link", "notice", "heat") or name.startswith("m-"):
            low, high = sorted((luminance(colour), ground))
            assert (high + 0.05) / (low + 0.05) >= (3.0 if name == "heat" else 4.5), name
