"""The documentation says what the results say."""

import importlib.util
import json
import re

import pytest

from places import ROOT

spec = importlib.util.spec_from_file_location("tables", ROOT / "experiments" / "tables.py")
tables = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tables)


@pytest.mark.parametrize("page", tables.PAGES)
def test_tables_are_made_from_results(page):
    assert (ROOT / page).read_text() == tables.filled(ROOT / page)


@pytest.mark.parametrize(
    "page", sorted(str(p.relative_to(ROOT)) for p in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
)
def test_links_and_files_exist(page):
    text = (ROOT / page).read_text()
    assert not re.findall(r"^[A-Z]+$", text, re.MULTILINE), "a place that was to be filled"
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", text)
    files = re.findall(r"`((?:recipes|experiments|tests|docs|results)/[\w./-]+\.\w+)`", text)
    for target in [(ROOT / page).parent / link for link in links] + [ROOT / file for file in files]:
        assert target.exists(), target


def test_results_name_their_origin():
    found = list((ROOT / "results").glob("*.json"))
    assert found
    for path in found:
        result = json.loads(path.read_text())
        environment = result["environment"]
        assert environment["torch"] and environment["cpu"] and environment["source_commit"], path
