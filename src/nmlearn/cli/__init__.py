"""The command line: ``nmlearn COMMAND``. One file per command, imported only when that command runs."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence

import nmlearn
from nmlearn.cli.escapes import plain
from nmlearn.errors import ConfigError, NMLearnError
from nmlearn.files.paths import refusal

COMMANDS = {
    "train": "train a model and learn N:M sparsity during training",
    "compare": "train methods x patterns x seeds under one protocol and compare them",
    "sparsify": "make a pretrained model sparse on your data, in one command",
    "plan": "show which weights of a model become sparse, and why the others stay dense",
    "inspect": "show which N:M patterns the weights in a file have",
    "export": "export the model of a run to ONNX and check the file",
    "bench": "measure how fast packed layers are on this machine",
    "pack": "write a smaller model file that leaves out the zeros",
    "unpack": "convert a packed file to an ordinary safetensors file",
    "import-lbc": "convert a checkpoint of the LBC authors' code to a model file",
    "report": "write the HTML report of a run or a comparison",
    "doctor": "show what is installed, and the data sets, models and methods with their options",
}

CLI_PACKAGES = ("pydantic", "rich", "ruamel")
EXIT_ERROR = 2
EXIT_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: what follows ``nmlearn``; None means this process's own arguments.

    Returns:
        The exit code: 0 for success, 1 for a check that failed, 2 for an error, 130 when interrupted.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        with _ended_as_interrupted():
            return _explained(arguments, debug)
    except KeyboardInterrupt:
        resumes = arguments[:1] in (["train"], ["compare"])
        hint = " The same command resumes from the last checkpoint." if resumes else ""
        with contextlib.suppress(OSError):  # a terminal that was closed takes no message
            sys.stderr.write(f"\nInterrupted.{hint}\n")
            sys.stderr.flush()
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of the pipe, such as head, has closed it
        sys.stderr.close()
        return 0
    except ModuleNotFoundError as error:
        if debug or (error.name or "").partition(".")[0] not in CLI_PACKAGES:
            raise
        sys.stderr.write(f"nmlearn: the command line needs the package {error.name}: pip install 'nmlearn[cli]'\n")
        return EXIT_ERROR


def _explained(arguments: list[str], debug: bool) -> int:
    """Run the command; errors that nmlearn raises, and those of the file system, are shown in four parts."""
    try:
        return _run(arguments)
    except BrokenPipeError:
        raise
    except (OSError, ValueError) as error:
        if debug or not (why := refusal(error)):
            raise
        _show(_of_files(error, why, arguments))
    except NMLearnError as error:
        if debug:
            raise
        _show(error)
    return EXIT_ERROR


def _of_files(error: OSError | ValueError, why: str, arguments: list[str]) -> NMLearnError:
    given = getattr(error, "filename", None) or getattr(error, "object", None) or " ".join(arguments)
    fix = "check the path, permissions, free space and --out"
    return NMLearnError(where="a file or folder", given=given, wrong=why, fix=fix)


def _show(error: NMLearnError) -> None:
    rank = os.environ.get("RANK", "0")
    if rank != "0":  # under torchrun all may fail alike: one panel, one line each from the others
        sys.stderr.write(plain(f"process {rank}: {error}") + "\n")
        return
    from nmlearn.cli import console

    console.show_error(error)


@contextlib.contextmanager
def _ended_as_interrupted() -> Iterator[None]:
    """Treat SIGTERM, and the SIGHUP of a terminal that closes, like Ctrl-C, so that a comparison stops its runs.

    Only the main thread may do this. What is ignored stays so: nohup has a run outlive its terminal.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    names = [name for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]  # Windows has no SIGHUP
    before = {number: signal.getsignal(number) for number in (getattr(signal, name) for name in names)}
    ours = [number for number, action in before.items() if action != signal.SIG_IGN]
    for number in ours:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, before[number])


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        sys.stdout.write(_help())
        return 0
    if arguments[0] in ("-V", "--version"):
        sys.stdout.write(f"nmlearn {nmlearn.__version__}\n")
        return 0
    command = arguments[0]
    if command not in COMMANDS:
        import difflib

        near = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f"did you mean nmlearn {near[0]}?" if near else f"commands: {', '.join(COMMANDS)}"
        raise ConfigError(where="nmlearn", given=command, wrong="there is no such command", fix=hint)
    return int(importlib.import_module(f"nmlearn.cli.{command.replace('-', '_')}").run(arguments[1:]))


def _help() -> str:
    lines = [f"  {name:12}{what}" for name, what in COMMANDS.items()]
    return "\n".join(
        [
            "usage: nmlearn COMMAND [OPTIONS]",
            "",
            "Learn N:M fine-grained sparsity during ordinary PyTorch training.",
            "",
            *lines,
            "",
            "  nmlearn COMMAND --help   show the options of a command",
            "  --debug                  show Python's traceback of an error",
            "  --version                show the version",
            "",
            "Start with: nmlearn train",
            "",
        ]
    )
