"""What the system reports about the processor."""

from __future__ import annotations


def fields(*names: str) -> list[str]:
    """The values of /proc/cpuinfo's lines with these names, in their order; none without this file."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            pairs = [line.partition(":") for line in file]
    except OSError:
        return []
    return [value.strip() for name, _, value in pairs if name.strip() in names]
