"""The command line: ``nmlearn COMMAND``. One file per command, imported only when it is asked for."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence

import nmlearn
from nmlearn.errors import ConfigError, NMLearnError

COMMANDS = {
    "train": "train a model, learning N:M sparsity on the way",
    "compare": "methods x patterns x seeds under one protocol",
    "plan": "which weights of a model would be taken, and why the others not",
    "inspect": "which pattern the weights of a file have",
    "export": "the model of a run as an ONNX file, checked",
    "bench": "how fast packed layers are on this machine",
    "pack": "a model file, smaller by its zeros",
    "unpack": "an ordinary safetensors file out of a packed one",
    "import-lbc": "a model file out of a checkpoint of LBC's authors",
    "report": "one HTML page about a run or a comparison",
    "doctor": "what is installed or missing; data, models and methods with their options",
}

CLI_PACKAGES = ("pydantic", "rich", "ruamel")
EXIT_ERROR = 2
EXIT_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: the words after ``nmlearn``; those of this process when None.

    Returns:
        The exit code: 0 for success, 1 for a check that failed, 2 for an error, 130 when interrupted.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        with _terminated_as_interrupted():
            return _explained(words, debug)
    except KeyboardInterrupt:
        goes_on = " The same command goes on from the last checkpoint." if words[:1] in (["train"], ["compare"]) else ""
        sys.stderr.write(f"\nInterrupted.{goes_on}\n")
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of a pipe, such as head, has seen enough
        sys.stderr.close()
        return 0
    except ModuleNotFoundError as error:
        if debug or (error.name or "").partition(".")[0] not in CLI_PACKAGES:
            raise
        sys.stderr.write(f"nmlearn: no package {error.name}; the command line needs it: pip install 'nmlearn[cli]'\n")
        return EXIT_ERROR


def _explained(words: list[str], debug: bool) -> int:
    """Run the words; what goes wrong on purpose, or in the file system, is shown in four parts."""
    try:
        return _run(words)
    except BrokenPipeError:
        raise
    except OSError as error:
        if debug:
            raise
        _show(_of_files(error))
    except NMLearnError as error:
        if debug:
            raise
        _show(error)
    return EXIT_ERROR


def _of_files(error: OSError) -> NMLearnError:
    return NMLearnError(
        where="a file or folder",
        given=error.filename or error,
        wrong=error.strerror or type(error).__name__,
        fix="check permissions, free space and --out",
    )


def _show(error: NMLearnError) -> None:
    rank = os.environ.get("RANK", "0")
    if rank != "0":  # under torchrun all processes may say the same: one panel, and a line from each of the others
        sys.stderr.write(f"process {rank}: {error}\n")
        return
    from nmlearn.cli import console

    console.show_error(error)


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Treat SIGTERM as Ctrl-C, so that a comparison ends its runs; only the main thread may."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        sys.stdout.write(_help())
        return 0
    if words[0] in ("-V", "--version"):
        sys.stdout.write(f"nmlearn {nmlearn.__version__}\n")
        return 0
    command = words[0]
    if command not in COMMANDS:
        import difflib

        near = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f"did you mean nmlearn {near[0]}?" if near else f"commands: {', '.join(COMMANDS)}"
        raise ConfigError(where="nmlearn", given=command, wrong="there is no such command", fix=hint)
    return int(importlib.import_module(f"nmlearn.cli.{command.replace('-', '_')}").run(words[1:]))


def _help() -> str:
    lines = [f"  {name:10} {what}" for name, what in COMMANDS.items()]
    return "\n".join(
        [
            "usage: nmlearn COMMAND [OPTIONS]",
            "",
            "Learn N:M fine-grained sparsity during ordinary PyTorch training.",
            "",
            *lines,
            "",
            "  nmlearn COMMAND --help   the options of a command",
            "  --debug                  show Python's traceback of an error",
            "  --version                the version",
            "",
            "Start with: nmlearn train",
            "",
        ]
    )
