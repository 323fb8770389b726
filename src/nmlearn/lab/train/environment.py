"""The environment of a run."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

import nmlearn
from nmlearn.native import processor as cpuinfo


def environment(device: torch.device) -> dict[str, Any]:
    """Versions, machine, device, source commit and the current time (ISO 8601, UTC), as plain JSON values."""
    return {
        "nmlearn": nmlearn.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "source_commit": source_commit(),
        "started": now(),
    }


def now() -> str:
    """The time, ISO 8601 in UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def cpu_name() -> str:
    """The processor's name as the system reports it."""
    names = cpuinfo.fields("model name")
    return names[0] if names else platform.processor() or platform.machine()


def source_commit() -> str | None:
    """The git commit of nmlearn's source, "+changes" when files differ from it; None outside a git checkout."""
    root = Path(__file__).parents[4]
    if not (root / ".git").exists():
        return None
    commit = _git(root, "rev-parse", "HEAD")
    if not commit:
        return None
    return commit + ("+changes" if _git(root, "status", "--porcelain", "--", "src") else "")


def _git(root: Path, *command: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", os.fspath(root), *command], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
