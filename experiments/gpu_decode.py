"""Packed weights against dense on a GPU: decode at several patterns, prefill at 2:4.

    python experiments/gpu_decode.py --out results/gpu_decode.json
    python experiments/gpu_decode.py --tune     # tries every launch configuration, not only the default

Every call is measured inside a CUDA graph that cycles through enough copies of the weight that neither the dense nor
the packed ones stay in the cache. Dense and packed graphs are replayed alternately; times are medians of milliseconds
per call. Dense is F.linear in bfloat16. Each row records how much its result differs from dense.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nmlearn.lab.train.environment import environment
from nmlearn.maths.pattern import Pattern
from nmlearn.packed.kernels import semi_structured, triton_decode

ROTATED = 512 * 2**20  # bytes of copies of a weight, several times the largest second-level cache


def main() -> None:
    args = parsed()
    if not torch.cuda.is_available():
        sys.exit("experiments/gpu_decode.py: there is no CUDA device; this script measures only GPU kernels")
    if importlib.util.find_spec("triton") is None:
        sys.exit("experiments/gpu_decode.py: Triton is not installed; pip install 'nmlearn[gpu]'")
    torch.manual_seed(0)
    rows = []
    for outputs, inputs in (map(int, shape.split("x")) for shape in args.shape):
        for pattern in args.pattern:
            rows += decode(args, outputs, inputs, Pattern(pattern))
        rows += prefill(args, outputs, inputs)
    found = {"what": __doc__.splitlines()[0], "settings": vars(args) | {"out": str(args.out)}, "rows": rows}
    found |= {"environment": environment(torch.device("cuda")) | machine()}
    args.out.write_text(json.dumps(found, indent=1, default=str) + "\n")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs="+", default=["4096x4096", "11008x4096"], help="outputs x inputs")
    parser.add_argument("--pattern", nargs="+", default=["2:4", "1:4", "2:8", "1:8", "1:16"])
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 4, 8, 16, 64], help="of decode")
    parser.add_argument("--prefill", type=int, nargs="*", default=[512, 1024, 2048, 4096, 8192], help="tokens")
    parser.add_argument("--repeats", type=int, default=21)
    parser.add_argument(
        "--tune", action="store_true", help="measure every launch configuration, and also report the best"
    )
    parser.add_argument("--out", type=Path, default=Path("results/gpu_decode.json"))
    return parser.parse_args()


def machine() -> dict[str, Any]:
    import triton

    device = torch.cuda.get_device_properties(0)
    return {
        "cuda": torch.version.cuda,
        "triton": triton.__version__,
        "cusparselt": torch.backends.cusparselt.version(),
        "processors": device.multi_processor_count,
        "l2_bytes": device.L2_cache_size,
        "memory_bytes": device.total_memory,
    }


def decode(args: argparse.Namespace, outputs: int, inputs: int, pattern: Pattern) -> list[dict[str, Any]]:
    """A row for every number of tokens."""
    weight = sparse(outputs, inputs, pattern)
    values, index = triton_decode.pack(weight, pattern)
    dense, packed = copies(weight), list(zip(copies(values, index.nbytes), copies(index, values.nbytes), strict=True))
    size = values.nbytes + index.nbytes
    rows = []
    for tokens in args.tokens:
        x = torch.randn(tokens, inputs, device="cuda", dtype=torch.bfloat16)
        rest = (None, pattern.n, pattern.m, outputs)
        launches = triton_decode.launches(tokens, outputs, inputs, pattern, machine()["processors"], x.dtype)
        sides = {"dense": graph([partial(F.linear, x, w) for w in dense])}
        for number, launch in enumerate(launches if args.tune else launches[:1]):
            sides[str(number)] = graph([partial(triton_decode.linear, x, v, i, *rest, launch) for v, i in packed])
        ms = medians(sides, {name: len(dense if name == "dense" else packed) for name in sides}, args.repeats)
        best = min((name for name in ms if name != "dense"), key=ms.__getitem__)
        error = difference(triton_decode.linear(x, values, index, *rest), F.linear(x, weight))
        row: dict[str, Any] = {
            "what": "decode",
            "outputs": outputs,
            "inputs": inputs,
            "pattern": str(pattern),
            "tokens": tokens,
        }
        row |= {"dense_ms": ms["dense"], "packed_ms": ms["0"], "ratio": ms["dense"] / ms["0"], "difference": error}
        row |= {"packed_bytes": size, "dense_bytes": weight.nbytes, "packed_gb_per_s": size / ms["0"] / 1e6}
        if args.tune:
            row |= {
                "best_ms": ms[best],
                "best_ratio": ms["dense"] / ms[best],
                "best_launch": asdict(launches[int(best)]),
            }
        print(json.dumps(row), flush=True)
        rows.append(row)
    return rows


def prefill(args: argparse.Namespace, outputs: int, inputs: int) -> list[dict[str, Any]]:
    """A row for every number of tokens, with both backends of torch's semi-structured tensors."""
    weight = sparse(outputs, inputs, Pattern("2:4"))
    rows = []
    for tokens in args.prefill:
        x = torch.randn(tokens, inputs, device="cuda", dtype=torch.bfloat16)
        row: dict[str, Any] = {
            "what": "prefill",
            "outputs": outputs,
            "inputs": inputs,
            "pattern": "2:4",
            "tokens": tokens,
        }
        row |= {backend: against_dense(x, weight, backend, args.repeats) for backend in semi_structured.MULTIPLES}
        print(json.dumps(row), flush=True)
        rows.append(row)
    return rows


def against_dense(x: Tensor, weight: Tensor, backend: semi_structured.Backend, repeats: int) -> dict[str, Any]:
    """Times of one backend and of interleaved dense calls, or the reason why there are none."""
    if why := semi_structured.obstacle(x, Pattern("2:4"), weight.shape[0], weight.shape[1], backend):
        return {"why_not": why}
    dense = copies(weight)
    try:
        packed = [semi_structured.pack(w, backend) for w in dense]
        sides = {
            "dense": graph([partial(F.linear, x, w) for w in dense]),
            "packed": graph([partial(semi_structured.linear, x, w, None) for w in packed]),
        }
        error = difference(semi_structured.linear(x, packed[0], None), F.linear(x, weight))
    except (RuntimeError, NotImplementedError) as failure:  # a device without a kernel fails only when it is called
        return {"why_not": str(failure).splitlines()[0]}
    ms = medians(sides, dict.fromkeys(sides, len(dense)), repeats)
    ratio = ms["dense"] / ms["packed"]
    return {"dense_ms": ms["dense"], "packed_ms": ms["packed"], "ratio": ratio, "difference": error}


def sparse(outputs: int, inputs: int, pattern: Pattern) -> Tensor:
    w_gm = torch.randn(outputs, inputs // pattern.m, pattern.m, device="cuda")
    keep = torch.zeros_like(w_gm).scatter(-1, torch.rand_like(w_gm).topk(pattern.n, -1).indices, 1.0)
    return (w_gm * keep).flatten(1).to(torch.bfloat16)


def copies(weight: Tensor, extra: int = 0) -> list[Tensor]:
    """Copies of a weight that together, with `extra` further bytes each, exceed any cache."""
    return [weight.clone() for _ in range(-(-ROTATED // (weight.nbytes + extra)))]


def graph(calls: Sequence[partial[Tensor]]) -> torch.cuda.CUDAGraph:
    """All calls, captured in sequence."""
    for call in calls[:2]:
        call()  # compiles, and chooses algorithms
    torch.cuda.synchronize()
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        for call in calls:
            call()
    return captured


def medians(sides: dict[str, torch.cuda.CUDAGraph], counts: dict[str, int], repeats: int) -> dict[str, float]:
    """Milliseconds per call, interleaved."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(repeats + 3):
        for name, captured in sides.items():
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            captured.replay()
            end.record()
            end.synchronize()
            if repeat >= 3:
                times[name].append(start.elapsed_time(end) / counts[name])
    return {name: statistics.median(measured) for name, measured in times.items()}


def difference(out: Tensor, dense: Tensor) -> float:
    """The largest difference, relative to the largest result."""
    return float((out.double() - dense.double()).abs().max() / dense.double().abs().max())


if __name__ == "__main__":
    main()
