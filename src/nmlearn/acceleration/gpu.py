"""What measuring needs from a CUDA device."""

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
        """The name of its model."""
        return torch.cuda.get_device_name(self.device)

    def described(self) -> str:
        """What times depend on in addition to the machine: the model, CUDA, cuSPARSELt and Triton."""
        versions = [self.name(), f"CUDA {torch.version.cuda}", f"cuSPARSELt {torch.backends.cusparselt.version()}"]
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions.append(f"Triton {metadata.version('triton')}")
        return ", ".join(versions)

    def cache_bytes(self) -> int:
        """The size of the second-level cache."""
        return int(torch.cuda.get_device_properties(self.device).L2_cache_size)

    def wait(self) -> None:
        """Wait until all launched work is done."""
        torch.cuda.synchronize(self.device)

    def captured(self, run: Callable[[], object]) -> Callable[[], object] | None:
        """A CUDA graph of `run`, to replay; None if `run` cannot be captured.

        `run` must have run before: kernels are compiled and algorithms chosen in the first run.
        """
        graph = torch.cuda.CUDAGraph()
        try:
            # With its own stream: torch's stream for captures is on the device of the first capture.
            with (
                torch.cuda.device(self.device),
                torch.cuda.graph(graph, stream=torch.cuda.Stream(self.device)),
            ):
                run()
        except Exception:  # torch raises several types, depending on what synchronizes or allocates
            return None
        return graph.replay


def gpu_of(device: torch.device) -> Gpu | None:
    """The GPU behind a device; None if the device is not a GPU."""
    return Gpu(device) if device.type == "cuda" else None
