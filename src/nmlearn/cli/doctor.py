"""``nmlearn doctor``: show what is installed or missing, and the available data sets, models and methods."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import platform
import shutil
import sys
import textwrap
import warnings
from collections.abc import Iterator
from typing import Any

from nmlearn.cli import choices
from nmlearn.cli.escapes import Parser, plain
from nmlearn.errors import NMLearnError
from nmlearn.native import processor as cpuinfo

CPU_FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "asimd", "sve")
PACKAGES = {
    "rich": "all other commands",
    "pydantic": "nmlearn train, compare, plan, export",
    "ruamel.yaml": "nmlearn train, compare, plan, export",
    "filelock": "nmlearn train, compare",
    "jinja2": "nmlearn train, compare, report",
    "torchvision": "models torchvision:NAME",
    "timm": "models timm:NAME",
    "transformers": "models transformers:FOLDER",
    "PIL": "image folders",
    "tensorboard": "--tensorboard true",
    "onnxscript": "nmlearn export",
    "onnxruntime": "nmlearn export, to compare outputs",
}
BUILD_KERNELS = (
    "Installing nmlearn builds it where there is a C++ compiler (on Debian: apt install g++): reinstall nmlearn, or "
    "run `make kernels` in a clone"
)
OF_CLI = ("rich", "pydantic", "ruamel.yaml", "filelock", "jinja2")
INSTALL_NAMES = {"PIL": "pillow"}
MARGIN = 26  # columns before the text of a row


def run(arguments: list[str]) -> int:
    """Print what is available. A missing part is no error: all of them are optional."""
    Parser(prog="nmlearn doctor", description=(__doc__ or "").split(": ", 1)[1]).parse_args(arguments)
    parts = {
        "This machine": _machine(),
        "Kernels for packed weights": _kernels(),
        "Optional packages": _packages(),
        "Data (--data NAME, --data.options.X)": _data(),
        "Models (--model NAME, --model.options.X)": choices.models(),
        "Methods (--method NAME, --method.options.X)": choices.methods(),
    }
    for title, rows in parts.items():
        sys.stdout.write(f"{title}\n")
        for row in rows:
            _print(*row)
        sys.stdout.write("\n")
    return 0


def _print(state: bool | None, name: str, text: str) -> None:
    """One row, as plain text: this command needs no other package; lines break only between words, for URLs."""
    width = max(MARGIN + 20, shutil.get_terminal_size().columns)
    lines = [
        line
        for part in text.split("\n")
        for line in textwrap.wrap(plain(part), width - MARGIN, break_long_words=False, break_on_hyphens=False)
    ]
    mark = {True: "yes", False: "no", None: ""}[state]
    sys.stdout.write(f"{mark:5}{name:{MARGIN - 6}} " + ("\n" + " " * MARGIN).join(lines) + "\n")


Row = tuple[bool | None, str, str]


def _machine() -> Iterator[Row]:
    import torch

    import nmlearn
    from nmlearn.lab.train.environment import cpu_name

    yield None, "nmlearn", nmlearn.__version__
    yield None, "Python", f"{platform.python_version()}, {sys.executable}"
    yield None, "torch", torch.__version__
    threads = torch.get_num_threads()
    used = f"{threads} thread{'s' * (threads != 1)} used by torch"
    yield None, "processor", f"{cpu_name()}, {os.cpu_count()} cores, {used}"
    yield None, "instructions", _instructions()
    cuda = torch.cuda.is_available()
    yield cuda, "CUDA", torch.cuda.get_device_name() if cuda else "not available: training runs on the processor"


def _instructions() -> str:
    lines = cpuinfo.fields("flags", "Features")
    flags = set(lines[0].split()) if lines else set()
    return ", ".join(name for name in CPU_FEATURES if name in flags) or f"unknown ({platform.machine()})"


def _kernels() -> Iterator[Row]:
    import torch

    from nmlearn.maths.pattern import Pattern
    from nmlearn.native import library as native
    from nmlearn.packed.kernels import semi_structured, triton_decode

    problem = native.problem()
    slow = "packed layers use the reference kernel, which is slower than dense"
    yield not problem, "CPU", f"{problem}; {slow}. {BUILD_KERNELS}" if problem else f"{native.isa()} instructions"
    example = torch.zeros(1, 64, dtype=torch.bfloat16, device="cuda" if torch.cuda.is_available() else "cpu")
    gpu = {
        "GPU, decode": triton_decode.obstacle(example, Pattern("1:4"), 64, 64),
        "GPU, 2:4 cuSPARSELt": semi_structured.obstacle(example, Pattern("2:4"), 64, 64),
        "GPU, 2:4 CUTLASS": semi_structured.obstacle(example, Pattern("2:4"), 64, 64, "cutlass"),
    }
    for name, why in gpu.items():
        yield not why, name, why or "usable"


def _packages() -> Iterator[Row]:
    for name, purpose in PACKAGES.items():
        found, text = _imported(name)
        install = "" if found else f"; {_install(name)}"
        yield found, INSTALL_NAMES.get(name, name), f"{text}, for {purpose}{install}"


def _install(name: str) -> str:
    import torch

    from nmlearn.lab.models.external import NEED_TORCHVISION

    if name in NEED_TORCHVISION and torch.version.cuda is None:
        package = "" if name == "torchvision" else f"{name} and "
        return (
            f"install {package}a torchvision built for this torch, {torch.__version__}: a plain pip install may "
            "pull in a CUDA build, which this torch cannot import"
        )
    return f"pip install {INSTALL_NAMES.get(name, name)}" if name not in OF_CLI else "pip install 'nmlearn[cli]'"


def _imported(name: str) -> tuple[bool, str]:
    """Whether a package can be imported, and its version or what went wrong. A broken one may raise anything."""
    silence = io.StringIO()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(silence), contextlib.redirect_stderr(silence):
            warnings.simplefilter("ignore")
            module: Any = importlib.import_module(name)
    except ModuleNotFoundError as error:
        absent = name == error.name or name.startswith(f"{error.name}.")
        return False, "not installed" if absent else f"broken: {error}"
    except Exception as error:
        return False, f"broken: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
    return True, str(getattr(module, "__version__", "installed"))


def _data() -> Iterator[Row]:
    from nmlearn.lab import data

    for name in data.DATASETS:
        options = f"\noptions: {choices.of_dataclass(data.OPTIONS[name])}" if name in data.OPTIONS else ""
        try:
            task = data.load(name)
        except NMLearnError as error:
            yield False, name, error.fix + options
        else:
            yield True, name, f"{task.train_size:,} + {task.eval_size:,} examples, {task.source}{options}"
