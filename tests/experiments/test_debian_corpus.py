"""The corpus of Debian's documentation, from packages made on the spot."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import make_debian_corpus as corpus
from places import ROOT

SCRIPT = ROOT / "experiments" / "make_debian_corpus.py"

PLAIN = "This paragraph is about nothing in particular, yet it is long enough to be taken for prose by the rule"
OTHER = "Another paragraph that stands on one page alone and is as long as the rule for paragraphs wants it to be"


def package(folder: Path, name: str, files: dict[str, bytes]) -> None:
    """A Debian package with these files under usr/share/doc/NAME."""
    root = folder / "build" / name
    for path, content in files.items():
        file = root / "usr/share/doc" / name / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    (root / "DEBIAN").mkdir()
    control = f"Package: {name}\nVersion: 2:1.0-1\nArchitecture: all\nMaintainer: nobody <a@b.c>\nDescription: none\n"
    (root / "DEBIAN/control").write_text(control)
    file = folder / f"{name}_1.0-1_all.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "-b", root, file], check=True, capture_output=True)


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs Debian's dpkg-deb")
def test_packages_become_pages_of_prose(tmp_path: Path) -> None:
    page = f"<html><head><title>{PLAIN} t</title></head><body><p>{PLAIN}</p><pre>{PLAIN} c</pre><p>Short.</p>"
    sources = {"a.html": page.encode(), "_sources/a.txt": (PLAIN + " s").encode(), "changelog.txt": PLAIN.encode()}
    package(tmp_path, "one-doc", sources)
    package(tmp_path, "two-doc", {"b.txt.gz": gzip.compress(f"{PLAIN}\n\n{OTHER}\n".encode()), "c.png": b"\x89PNG"})
    command = [sys.executable, SCRIPT, tmp_path / "out", "--packages", "one-doc", "two-doc", "--debs", tmp_path]
    subprocess.run(command, check=True, capture_output=True)
    pages = {path.parent.name: path.read_text() for path in (tmp_path / "out").rglob("*.txt")}
    assert pages == {"one-doc": PLAIN, "two-doc": OTHER}
    record = json.loads((tmp_path / "out" / "packages.json").read_text())
    assert [(each["package"], each["version"], each["pages"], each["paragraphs"]) for each in record] == [
        ("one-doc", "2:1.0-1", 1, 1),
        ("two-doc", "2:1.0-1", 1, 1),
    ]
    assert [each["bytes"] for each in record] == [len(PLAIN), len(OTHER)]
    assert subprocess.run(command, capture_output=True).returncode != 0, "it must not mix two corpora"


def test_manual_pages_lose_their_requests(tmp_path: Path) -> None:
    file = tmp_path / "a.1"
    file.write_text(f".TH A 1\n\\fB{PLAIN[:40]}\\fR{PLAIN[40:]}\n.PP\n")
    assert list(corpus.prose(file)) == [PLAIN]


@pytest.mark.parametrize(
    ("text", "kept"), [(PLAIN, True), ("short", False), ("x = 1; " * 20, False), ("просто русский текст " * 6, False)]
)
def test_prose_is_long_and_of_letters(text: str, kept: bool) -> None:
    assert corpus.is_prose(text) == kept


@pytest.mark.parametrize(
    ("path", "kept"),
    [
        ("/usr/share/doc/apache2-doc/manual/en/a.html", True),
        ("/usr/share/doc/apache2-doc/manual/de/a.html", False),
        ("/usr/share/doc/linux-doc-6.1/html/translations/it/a.html", False),
        ("/usr/share/doc/python3.11/html/library/os.html", True),
    ],
)
def test_translations_are_skipped(path: str, kept: bool) -> None:
    assert (corpus.SKIPPED.search(path) is None) == kept
