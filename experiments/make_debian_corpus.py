"""Write a corpus of technical English from Debian's documentation packages, for the data set "text".

    python experiments/make_debian_corpus.py OUT                  # five packages, permissive licences, 30 MB download
    python experiments/make_debian_corpus.py OUT --packages all   # nineteen; licences differ, see their copyright files
    python experiments/make_debian_corpus.py OUT --debs FOLDER    # packages downloaded before with apt-get download

Downloads each package with ``apt-get download`` and unpacks it with ``dpkg-deb``; nothing is installed. Markup is
stripped. A paragraph is kept if it has 80 characters, more than 80 % of them letters and blanks, and has not occurred
before in any package. Each page becomes OUT/PACKAGE/PAGE.txt, so that nmlearn's "text" splits training and evaluation
by page. OUT/packages.json records version, pages, paragraphs and bytes of each package. Debian's point releases change
them, so report the versions with every figure. The corpus is for your own use: the packages keep their licences.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import html.parser
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

PERMISSIVE = ("postgresql-doc-15", "python-django-doc", "sqlite3-doc", "apache2-doc", "python3.11-doc")
OTHERS = (
    *("linux-doc-6.1", "perl-doc", "vim-doc", "erlang-doc", "git-doc", "octave-doc", "manpages-dev", "manpages"),
    *("libreoffice-help-en-us", "nova-doc", "debian-policy", "gimp-help-en", "developers-reference"),
    "debian-reference-en",
)
# Sources next to the pages built from them, and translations.
SKIPPED = re.compile(r"/(_sources|translations)/|/apache2-doc/manual/(?!en/)|/(changelog|copyright|NEWS)[^/]*$")
PAGE = re.compile(r"\.(html?|txt|pod|[1-8])(\.gz)?$")
BLOCKS = {"p", "div", "li", "dd", "dt", "td", "th", "tr", "h1", "h2", "h3", "h4", "h5", "h6", "section", "blockquote"}
SILENT = {"script", "style", "pre", "head", "nav", "code-block"}
SHORTEST, LETTERS = 80, 0.8


class Prose(html.parser.HTMLParser):
    """Collects the text of a page, with a blank line between blocks and without code blocks and scripts."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self._silent = 0

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self._silent += tag in SILENT
        if tag in BLOCKS:
            self.parts.append("\n\n")

    def handle_endtag(self, tag: str) -> None:
        self._silent -= tag in SILENT and self._silent > 0
        if tag in BLOCKS:
            self.parts.append("\n\n")

    def handle_data(self, data: str) -> None:
        if not self._silent:
            self.parts.append(data)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--packages", nargs="+", default=list(PERMISSIVE), help="names, or all")
    parser.add_argument("--debs", type=Path, help="folder with packages downloaded before")
    given = parser.parse_args()
    names = [*PERMISSIVE, *OTHERS] if given.packages == ["all"] else given.packages
    if given.out.exists() and any(given.out.iterdir()):
        sys.exit(f"{given.out} is not empty: give a new folder")
    given.out.mkdir(parents=True, exist_ok=True)
    seen: set[bytes] = set()
    record = [write_package(name, deb(name, given.debs, given.out), given.out, seen) for name in names]
    (given.out / "packages.json").write_text(json.dumps(record, indent=1) + "\n")
    print(f"{given.out}: {sum(each['bytes'] for each in record) / 1e6:.1f} MB of prose")


def deb(name: str, folder: Path | None, out: Path) -> Path:
    """The package's file, downloaded into ``out`` if no folder was given."""
    if folder is None:
        subprocess.run(["apt-get", "download", name], cwd=out, check=True)
    found = sorted((folder or out).glob(f"{name}_*.deb"))
    if not found:
        sys.exit(f"{name}: no such package in {folder or out}; fetch it with apt-get download {name}")
    return found[-1]


def write_package(name: str, file: Path, out: Path, seen: set[bytes]) -> dict[str, object]:
    """Write a package's pages and return its record; a package file in ``out`` is deleted."""
    version = subprocess.run(
        ["dpkg-deb", "-f", str(file), "Version"], capture_output=True, text=True, check=True
    ).stdout.strip()
    pages = kept = size = 0
    with tempfile.TemporaryDirectory() as place:
        subprocess.run(["dpkg-deb", "-x", str(file), place], check=True)
        for path in pages_under(Path(place)):
            paragraphs = [text for text in prose(path) if is_new(text, seen)]
            if paragraphs:
                page = out / name / (re.sub(r"[^\w.-]+", "_", str(path.relative_to(place))) + ".txt")
                page.parent.mkdir(exist_ok=True)
                size += page.write_bytes("\n\n".join(paragraphs).encode())
                pages, kept = pages + 1, kept + len(paragraphs)
    if file.parent == out:
        file.unlink()
    return {"package": name, "version": version, "pages": pages, "paragraphs": kept, "bytes": size}


def pages_under(folder: Path) -> list[Path]:
    """Files with prose, in a fixed order, which determines which of two equal paragraphs is kept."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return sorted(path for path in files if PAGE.search(path.name) and not SKIPPED.search(str(path)))


def prose(path: Path) -> Iterator[str]:
    """The paragraphs of a page that are prose."""
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    text, name = raw.decode("utf-8", errors="replace"), path.name.removesuffix(".gz")
    if name.endswith((".html", ".htm")):
        reader = Prose()
        reader.feed(text)
        text = "".join(reader.parts)
    elif re.search(r"\.[1-8]$", name):  # a manual page: requests are at the start of a line, fonts are \fX
        text = re.sub(r"(?m)^[.'].*$", "", text)
        text = re.sub(r"\\f.|\\", "", text)
    for paragraph in re.split(r"\n[ \t]*\n", text):
        paragraph = " ".join(paragraph.split())
        if is_prose(paragraph):
            yield paragraph


def is_prose(text: str) -> bool:
    """Long enough, and more than four fifths of it Latin letters and blanks."""
    return len(text) >= SHORTEST and sum(c == " " or (c.isascii() and c.isalpha()) for c in text) > LETTERS * len(text)


def is_new(text: str, seen: set[bytes]) -> bool:
    """Whether the paragraph is new; marks it as seen."""
    digest = hashlib.sha256(text.encode()).digest()
    known = digest in seen
    seen.add(digest)
    return not known


if __name__ == "__main__":
    main()
