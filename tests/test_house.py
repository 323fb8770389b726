"""The habits of the house that no linter knows: short files, our words, a lazy import, documented names."""

import ast
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import nmlearn
from places import ROOT

PYTHON_FILES = sorted([*(ROOT / "src").rglob("*.py"), *(ROOT / "tests").rglob("*.py")])
MAX_LINES = 400

# Words that say nothing, or that the field uses for several things.
FORBIDDEN = {"pruner", "modifier", "updater", "compressor", "handler", "manager", "util", "helper", "core", "common"}
# English that reads translated, and what to say instead. Records of decisions keep their words.
TRANSLATED = {
    r"beside(?!s)": "next to, alongside, in addition to",
    r"(?<!\")anew(?!\")": "again",
    r"pictures?": "image",
    r"a training(?! \w)": "training, a training run",
    r"(?:is|are) owed": "needs",
    r"to be had": "available",
    r"from here on": "from now on",
    r"has not(?=[.,;:])": "does not have",
}
OTHERS = re.compile(r"docs/decisions/|LICENSE")
# Folders that exist on one machine only. A test that needs a folder uses tmp_path.
MACHINE_PATH = re.compile(r"(?<![\w.~}-])/(?:home|root|Users|tmp|mnt|work|workspace|scratch)/\w[\w./-]*")

# Rooms whose tensors lie where those of the user lie, never on torch's default device; and what makes tensors.
PLACED = ("learn", "maths", "methods", "model", "files", "native", "packed", "acceleration")
FACTORIES = {"arange", "as_tensor", "asarray", "empty", "empty_strided", "eye", "full", "linspace", "ones", "rand"}
FACTORIES |= {"randint", "randn", "randperm", "scalar_tensor", "tensor", "tril_indices", "triu_indices", "zeros"}

# Our own three, and what torch's wheel requires: torch imports some of it late.
LIGHT = {"nmlearn", "torch", "torchgen", "functorch", "numpy", "safetensors", "filelock", "fsspec", "jinja2"}
LIGHT |= {"markupsafe", "mpmath", "networkx", "sympy", "setuptools", "typing_extensions"}


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def text_files() -> Iterator[tuple[str, str]]:
    """Name and text of every file that is tracked or could be; files that are not text are left out."""
    command = ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True).stdout
    for name in sorted(filter(None, listed.split("\0"))):
        try:
            yield name, (ROOT / name).read_text(encoding="utf-8")
        except (UnicodeDecodeError, FileNotFoundError):  # binary, or deleted and not yet committed
            continue


def words(name: str) -> set[str]:
    """The lower-case words of a snake_case or CamelCase name, singular."""
    parts = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)
    return {word for part in parts for word in (part.lower(), part.lower().removesuffix("s"))}


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_no_file_is_long() -> None:
    lengths = {name: len(text.splitlines()) for name, text in text_files() if name.startswith(("src/", "tests/"))}
    assert {name: count for name, count in lengths.items() if count > MAX_LINES} == {}


def test_tests_mirror_the_package() -> None:
    """A folder of tests is a room of the package, but for the tests of experiments and what several tests share."""
    rooms = {relative(path.parent).removeprefix("src/nmlearn/") for path in (ROOT / "src/nmlearn").rglob("*.py")}
    folders = {relative(path.parent).removeprefix("tests/") for path in (ROOT / "tests").rglob("*.py")}
    assert folders - rooms == {"tests", "support", "support/loops", "experiments"}


def test_test_modules_import_no_others() -> None:
    """What several need lies in tests/support."""
    importing = re.compile(r"^\s*(?:from|import) (test_\w+)", re.MULTILINE)
    found = {relative(path): importing.findall(path.read_text()) for path in (ROOT / "tests").rglob("*.py")}
    assert {name: modules for name, modules in found.items() if modules} == {}


@pytest.mark.parametrize("path", PYTHON_FILES, ids=relative)
def test_no_forbidden_words(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    definitions = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    names = [path.stem, path.parent.name] + [node.name for node in ast.walk(tree) if isinstance(node, definitions)]
    assert [name for name in names if words(name) & FORBIDDEN] == []


def makes_without_device(node: ast.AST) -> bool:
    """Whether it is a call like ``torch.zeros(3)``: ``torch.device("meta")`` around a training loop would reach it."""
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
        return False
    made = isinstance(node.func.value, ast.Name) and node.func.value.id == "torch" and node.func.attr in FACTORIES
    return made and all(keyword.arg != "device" for keyword in node.keywords)


def test_tensors_are_made_on_a_named_device() -> None:
    found = [
        f"{relative(path)}:{node.lineno}"
        for room in PLACED
        for path in sorted((ROOT / "src/nmlearn" / room).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if makes_without_device(node)
    ]
    assert found == []


@pytest.mark.parametrize("phrase", TRANSLATED)
def test_no_translated_english(phrase: str) -> None:
    form = re.compile(rf"\b{phrase}\b", re.IGNORECASE)
    prose = ("src/", "docs/", "examples/", "experiments/", "recipes/", "README.md", "CONTRIBUTING.md")
    texts = {name: text for name, text in text_files() if name.startswith(prose) and not OTHERS.search(name)}
    found = [
        f"{name}:{text[: m.start()].count(chr(10)) + 1}" for name, text in texts.items() for m in form.finditer(text)
    ]
    assert found == [], f"say: {TRANSLATED[phrase]}"


@pytest.mark.parametrize("name", sorted(nmlearn.__all__))
def test_public_name_exists_and_is_documented(name: str) -> None:
    thing = getattr(nmlearn, name)
    assert name in dir(nmlearn)
    if inspect.isclass(thing) or inspect.isroutine(thing) or inspect.ismodule(thing):
        text = thing.__doc__ or ""
        written_by_dataclass = text.startswith(f"{name}(")
        assert text.strip() and not written_by_dataclass, f"nmlearn.{name} has no docstring"


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = nmlearn.no_such_name


def test_import_is_lazy() -> None:
    assert run_python("import sys, nmlearn; print('torch' in sys.modules, 'numpy' in sys.modules)") == "False False"


def test_library_needs_only_its_three_packages() -> None:
    code = """
import sys
import numpy, safetensors, torch
before = set(sys.modules)
import nmlearn as nm
nm.LBC, nm.Sparsifier
print(*{name.partition(".")[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names))
"""
    loaded = {name for name in run_python(code).split() if not name.startswith("_")}
    assert loaded - LIGHT == set()


def test_no_file_names_a_folder_of_one_machine() -> None:
    found = {name: MACHINE_PATH.findall(text) for name, text in text_files()}
    assert {name: paths for name, paths in found.items() if paths} == {}
