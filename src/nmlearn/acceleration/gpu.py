"""What measuring asks of a CUDA device."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from importlib import metadata

import torch


class Gpu:
    """A CUDA device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def name(self) -> str:
        """Its model."""
        return torch.cuda.get_device_name(self.device)

    def described(self) -> str:
        """What times depend on beside the machine: the model, CUDA, cuSPARSELt and Triton."""
        versions = [self.name(), f"CUDA {torch.version.cuda}", f"cuSPARSELt {torch.backends.cusparselt.version()}"]
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions.append(f"Triton {metadata.version('triton')}")
        return ", ".join(versions)

    def cache_bytes(self) -> int:
        """The size of the second-level cache."""
        return int(torch.cuda.get_device_properties(self.device).L2_cache_size)

    def wait(self) -> None:
        """Return when everything that was begun is done."""
        torch.cuda.synchronize(self.device)

    def captured(self, run: Callable[[], object]) -> Callable[[], object] | None:
        """A CUDA graph of what `run` does, to be replayed; None where it does something that cannot be captured.

        It has to have run before: kernels are compiled and algorithms chosen in the first run.
        """
        graph = torch.cuda.CUDAGraph()
        try:
            # A stream of its own, for torch keeps one for all captures, on the device of the first.
            with (
                torch.cuda.device(self.device),
                torch.cuda.graph(graph, stream=torch.cuda.Stream(self.device)),
            ):
                run()
        except Exception:  # torch raises several types, according to what it was that waits or allocates
            return None
        return graph.replay


def gpu_of(device: torch.device) -> Gpu | None:
    """The GPU behind a device; None where the device is none."""
    return Gpu(device) if device.type == "cuda" else None
