"""The documentation says what the results say, and what it shows runs."""

import contextlib
import io
import json
import re
import shlex
import tomllib
import warnings
from collections import Counter
from dataclasses import dataclass

import pytest

import doc_pages
import nmlearn as nm
import tables
from loops.parts import MARK
from nmlearn import cli
from nmlearn.cli import bench, export, import_lbc, inspect, pack, parsing, plan, report, sparsify, unpack
from nmlearn.lab.train import CompareConfig, TrainConfig
from nmlearn.lab.train.config import SparsifyConfig
from places import LOOPS, ROOT

PAGES = sorted(str(path.relative_to(ROOT)) for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
LIVING = [page for page in PAGES if not page.startswith(("CHANGELOG", "docs/decisions/0"))]  # the others are history
BLOCK = re.compile(r"(?:^<!-- ([^\n]*) -->\n)?^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Why a Python block of a page is not run, and how many there are.
NOT_RUN = {
    "needs an NVIDIA GPU": 1,
    "needs the optional package openvino": 1,
    "compiles C++ for half a minute; tests/packed/test_aot.py runs it": 1,
}
FOREIGN = {"trtexec"}  # commands of others
LOOP = re.compile(r"`tests/support/loops/(\w+)\.py`")
# Turns of phrase that are not the field's English.
STILTED = re.compile(
    r"\ba training(?! (?:run|step|loop|script|example|image|set))\b|\btrainings\b|\bbeside\b|\banew\b|\bpictures?\b"
    r"|\bnothing is owed\b|\bto be had\b|\bfrom here on\b|\bhas not\b(?! (?:run|been|met))",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, the comment above it, and where it begins."""

    language: str
    text: str
    comment: str
    line: int

    @property
    def not_run(self) -> str:
        return self.comment.removeprefix("not run: ") if self.comment.startswith("not run: ") else ""


def blocks(page):
    text = (ROOT / page).read_text()
    return [
        Block(match[2], match[3], match[1] or "", text.count("\n", 0, match.start(3)) + 1)
        for match in BLOCK.finditer(text)
    ]


def python(page):
    return [block for block in blocks(page) if block.language == "python"]


@pytest.mark.parametrize("page", tables.PAGES)
def test_tables_are_made_from_results(page):
    assert (ROOT / page).read_text() == tables.filled(ROOT / page)


@pytest.mark.parametrize("page", PAGES)
def test_links_and_files_exist(page):
    text = (ROOT / page).read_text()
    assert not re.findall(r"^[A-Z]+$", text, re.MULTILINE), "a place that was to be filled"
    files = re.findall(r"`((?:recipes|experiments|tests|docs|results|examples)/[\w./-]+\.\w+)`", text)
    for target in [ROOT / file for file in files]:
        assert target.exists(), target
    for link, _, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(#([^)]*))?\)", text):
        target = (ROOT / page).parent / link if link else ROOT / page
        assert target.exists(), target
        assert not anchor or anchor in anchors(target.read_text()), f"{target}#{anchor}"


def anchors(text):
    """The names of headings in links, as GitHub makes them."""
    heads = re.findall(r"^#+ (.*)$", BLOCK.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}


def test_readme_is_short_and_the_map_has_every_page():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120
    linked = re.findall(r"\]\(([^)#]+\.md)\)", (ROOT / "docs" / "README.md").read_text())
    assert {path.name for path in ROOT.glob("docs/*.md")} - {"README.md"} <= set(linked)


@pytest.mark.parametrize("page", LIVING)
def test_plain_english(page):
    prose = re.sub(r"`[^`]*`", "", BLOCK.sub("", (ROOT / page).read_text()))
    assert [match[0] for match in STILTED.finditer(prose)] == []


@pytest.mark.parametrize("page", PAGES)
def test_code_is_in_fenced_blocks(page):
    assert {block.language for block in blocks(page)} <= {"python", "sh", "text", "diff"}
    rest = BLOCK.sub("", (ROOT / page).read_text())
    assert not re.findall(r"^\s*```|^ {4,}.*(?:\bnm\.|\bimport |^ *nmlearn |\bpip ).*", rest, re.MULTILINE)


@pytest.mark.parametrize("page", [page for page in PAGES if any(not block.not_run for block in python(page))])
def test_python_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for measuring in (nm.accelerate, nm.allocate):
        monkeypatch.setitem(measuring.__kwdefaults__, "cache", tmp_path / "kernels.json")
    with doc_pages.names(page) as names, warnings.catch_warnings():
        for message in doc_pages.WARNINGS.get(page, ()):
            warnings.filterwarnings("ignore", message)
        names = {"__name__": page, **names}
        for block, after in zip(blocks(page), [*blocks(page)[1:], None], strict=True):
            if block.language == "python" and not block.not_run:
                code = compile("\n" * (block.line - 1) + block.text, page, "exec")
                with contextlib.redirect_stdout(io.StringIO()) as printed:
                    exec(code, names)
                if after is not None and after.comment == "printed":
                    assert printed.getvalue().startswith(after.text)


def diffs():
    """Program -> the diff that pages show of it: the program that is named last before it."""
    found = []
    for page in PAGES:
        lines = (ROOT / page).read_text().splitlines()
        named = [(LOOP.findall("\n".join(lines[: b.line])), b.text) for b in blocks(page) if b.language == "diff"]
        found += [(names[-1] if names else page, text) for names, text in named]
    return found


def test_every_loop_has_one_diff():
    programs = {path.stem for path in LOOPS.glob("*.py")} - {"parts"}
    assert sorted(name for name, _ in diffs()) == sorted(programs)


@pytest.mark.parametrize(("name", "text"), diffs(), ids=lambda each: each if each.isidentifier() else "diff")
def test_diffs_are_of_programs_that_run(name, text):
    """They add the lines that the program has of nmlearn, all of them, between lines that stand there as they do."""
    program = (LOOPS / f"{name}.py").read_text()
    assert {line[0] for line in text.splitlines()} <= {"+", " ", "@"}
    added = [line[1:] + MARK for line in text.splitlines() if line[0] == "+"]
    assert added == [line for line in program.splitlines() if line.endswith(MARK)]
    for piece in re.split(r"^@@ .* @@\n", text, flags=re.MULTILINE):
        lines = [line[1:] + MARK * (line[0] == "+") for line in piece.splitlines()]
        assert lines and "\n".join(["", *lines, ""]) in program, piece


def test_what_does_not_run_says_why():
    found = [block for page in PAGES for block in blocks(page)]
    assert Counter(block.not_run for block in found if block.not_run) == NOT_RUN
    assert {block.comment for block in found if not block.not_run} <= {"", "printed"}
    assert any(block.comment == "printed" for block in blocks("README.md"))


def commands():
    """The command lines of README, docs and the comments of recipes."""
    found = []
    for page in LIVING:
        found += [line for block in blocks(page) if block.language == "sh" for line in block.text.splitlines()]
        text = BLOCK.sub("", (ROOT / page).read_text())
        found += re.findall(r"`(nmlearn [a-z-]+ [^`]+|python experiments/[^`]+)`", text)
    for recipe in ROOT.glob("recipes/*.yaml"):
        found += re.findall(r"^# {3,}((?:torchrun|nmlearn) .*)$", recipe.read_text(), re.MULTILINE)
    return sorted(set(found))


@pytest.mark.parametrize("line", commands())
def test_commands_parse(line, monkeypatch):
    monkeypatch.chdir(ROOT)
    command, *words = shlex.split(re.split(r" [|>] ", line)[0], comments=True)
    if command == "torchrun":
        words = words[words.index("-m") + 1 :]
        command = words.pop(0)
    if command == "nmlearn":
        check_nmlearn(*words)
    elif command == "python":
        assert (ROOT / words[0]).exists()
    elif command == "make":
        assert re.search(rf"^{words[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif command == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert words[0] == "install" and re.fullmatch(rf"\.(\[({'|'.join(extras)})\])?", words[1])
    else:
        assert command in FOREIGN


def check_nmlearn(command, *words):
    if command == "sparsify":
        words = sparsify.named(list(words))
    kinds = {"sparsify": SparsifyConfig, "train": TrainConfig, "compare": CompareConfig, "plan": plan.PlanConfig}
    parsers = {"bench": bench, "export": export, "inspect": inspect, "pack": pack, "report": report, "unpack": unpack}
    if command in kinds:
        words = [word for word in words if word != "--print_config"]
        assert isinstance(parsing.parse(kinds[command], command, words, ""), kinds[command])
    elif command in parsers or command == "import-lbc":
        assert parsers.get(command, import_lbc).parser().parse_args(words)
    else:
        assert command in cli.COMMANDS and not words


def test_every_command_is_documented():
    found = re.findall(r"(?:^|\s)nmlearn ([\w-]+)", "\n".join(commands()))
    assert set(found) == set(cli.COMMANDS)


def test_results_name_their_origin():
    found = list((ROOT / "results").glob("*.json"))
    assert found
    for path in found:
        result = json.loads(path.read_text())
        environment = result["environment"]
        assert environment["torch"] and environment["cpu"] and environment["source_commit"], path
