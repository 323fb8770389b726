"""Speed of reading, decoding, augmenting and batching images: images per second on one core and with workers.

    python experiments/input_pipeline.py --out results/input_pipeline_cpu.json

The images are JPEGs of 500 x 375 pixels, the usual size in ImageNet, and a few of 2000 x 1500. They are not photographs
but noise with a similar spectrum, so that files are about as large as ImageNet's. Rates for one core are per second of
CPU time, which other work on the machine affects little. Rates of the whole pipeline are also per second of wall time,
and count the CPU time of all processes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import nmlearn.lab.data
from nmlearn.lab.data import augment, decoding
from nmlearn.lab.data.folder import MEAN, STD, FolderOptions
from nmlearn.lab.train.environment import environment

PLAIN = {"augment": "random-resized-crop"}
DEIT = PLAIN | {"interpolation": "bicubic", "randaugment": 9.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=192, help="images per class, in two classes")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        files = write(Path(folder), args.images)
        found: dict[str, Any] = {"what": "input pipeline", "settings": vars(args) | {"out": str(args.out)}}
        found["bytes_per_file"] = statistics.mean(file.stat().st_size for file in files)
        large = [Path(folder) / f"{number}.jpg" for number in range(8)]
        for number, file in enumerate(large):
            photograph(np.random.default_rng(number), 2000, 1500).save(file, quality=90)
        works = stages(files, large, args.batch)
        found["stages"] = [stage(name, work, args.repeats) for name, work in works.items()]
        found["whole"] = [whole(Path(folder), workers, args) for workers in args.workers]
    found["environment"] = environment(torch.device("cpu"))
    if args.out:
        args.out.write_text(json.dumps(found, indent=1, default=str) + "\n")


def write(root: Path, per_class: int) -> list[Path]:
    """Write JPEGs in ImageNet's layout; returns those for training."""
    random = np.random.default_rng(0)
    files = []
    for part, count in (("train", per_class), ("val", 8)):
        for name in ("n01440764", "n01443537"):
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                file = root / part / name / f"{name}_{number}.JPEG"
                photograph(random, 500, 375).save(file, quality=90)
                files += [file] if part == "train" else []
    return files


def photograph(random: np.random.Generator, width: int, height: int) -> Image.Image:
    """Colour noise whose amplitude falls with the inverse of the frequency."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]) + 1 / width
    noise = np.fft.rfft2(random.standard_normal((3, height, width))) / frequency
    pixels = np.fft.irfft2(noise, (height, width))
    grey = pixels.mean(0, keepdims=True)  # photographs have little colour
    pixels = grey + 0.3 * (pixels - grey)
    pixels = 128 + 50 * (pixels - pixels.mean()) / pixels.std()
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8).transpose(1, 2, 0))


def stages(files: list[Path], large: list[Path], batch: int) -> dict[str, Callable[[], int]]:
    """Stages of the pipeline by name; each call processes some images and returns their number."""
    mean, std = torch.tensor(MEAN), torch.tensor(STD)
    uint8 = torch.randint(256, (batch, 224, 224, 3), dtype=torch.uint8).permute(0, 3, 1, 2)

    def decode(files: list[Path]) -> Callable[[], int]:
        def work() -> int:
            for file in files:
                Image.open(file).load()
            return len(files)

        return work

    def read(kind: str, options: dict[str, Any], files: list[Path] = files) -> Callable[[], int]:
        settings = FolderOptions(**options)

        def work() -> int:
            for number, file in enumerate(files):
                decoding.read(file, kind, settings, (0, 0, number))
            return len(files)

        return work

    def finish() -> int:
        for _ in range(8):
            augment.normalise(uint8, mean, std)
        return 8 * batch

    return {
        "decode 500 x 375": decode(files),
        "decode, crop, resize to 224, flip": read("random-resized-crop", PLAIN),
        "the same for evaluation": read("none", PLAIN),
        "the same for DeiT: bicubic, RandAugment": read("random-resized-crop", DEIT),
        "decode 2000 x 1500 in full": decode(large),
        "decode 2000 x 1500 as needed, crop, resize, flip": read("random-resized-crop", PLAIN, large),
        "normalise (on the GPU when there is one)": finish,
    }


def stage(name: str, work: Callable[[], int], repeats: int) -> dict[str, Any]:
    rates = []
    work()
    for _ in range(repeats):
        start = time.process_time()
        done = work()
        rates.append(done / (time.process_time() - start))
    row = {"stage": name, "images_per_cpu_second": statistics.median(rates)}
    print(json.dumps(row))
    return row


def whole(root: Path, workers: int, args: argparse.Namespace) -> dict[str, Any]:
    """Time epochs as training reads them, without the first one, which starts the workers."""
    task = nmlearn.lab.data.load("image-folder", root, workers=workers, **PLAIN)
    rates, cpu_rates = [], []
    for epoch in range(args.repeats + 1):
        start, cpu = time.perf_counter(), cpu_seconds()
        images = sum(len(labels) for _, labels in task.train_batches(args.batch, epoch=epoch, seed=0))
        if epoch:
            rates.append(images / (time.perf_counter() - start))
            cpu_rates.append(images / (cpu_seconds() - cpu))
    row = {"workers": workers, "images_per_second": statistics.median(rates)}
    row["images_per_cpu_second"] = statistics.median(cpu_rates)
    print(json.dumps(row))
    return row


def cpu_seconds() -> float:
    """CPU time of this process and its running children, from /proc; Linux only."""
    ticks = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        if int(fields[1]) == os.getpid():
            ticks += int(fields[11]) + int(fields[12])
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
