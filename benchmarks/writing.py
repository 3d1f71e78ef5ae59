"""What a shard costs beside the encoding of its images: staging and committing it, against encoding alone.

    python benchmarks/writing.py            # one row a size and kind of image; about two minutes on one core

Both sides encode the same images in the same way, alternately, in many short rounds of which the quickest counts: other
work on the machine disturbs it least. What a shard costs however many samples it has (fsync, locks, the manifest's row) is
taken from shards of one sample and divided among the samples of a shard of 1000.

    overhead = (beside_us + shard_us / 1000) / encode_us        by the clock, and by processor time
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rows import cpu, record
from samples import record_of

from cfaug.offline.commit import open_destination
from cfaug.offline.format import Sample
from cfaug.offline.write_shard import encode_image, stage_shard

ROWS = Path(__file__).parent / "results" / "offline.jsonl"
SAMPLES = {32: 200, 64: 200, 128: 60, 224: 30, 512: 8}
ROUNDS, SHARD = 25, 1000
ATTRIBUTES = {"digit": "1", "colour": "red", "ground": "dark", "thickness": 0.5}


def photograph(size: int, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Smooth shades under sensor noise (standard deviation 6 of 255), (size, size, 3): compresses like a photograph."""
    y, x = np.mgrid[:size, :size] / size
    shade = 128 + 60 * np.sin(6 * x + rng.uniform(0, 6))[..., None] * [1, 0.5, 0.2] + 30 * np.cos(9 * y)[..., None]
    return np.clip(shade + rng.normal(0, 6, (size, size, 3)), 0, 255).astype(np.uint8)


def flat(size: int, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """One colour and a square of another: the quickest to encode, so the writer's share is the largest."""
    image = np.full((size, size, 3), rng.integers(0, 256, 3), np.uint8)
    image[size // 4 : size // 2, size // 4 : size // 2] = rng.integers(0, 256, 3)
    return image


def samples(size: int, make: Any) -> list[Sample]:
    rng = np.random.default_rng(0)
    images = [make(size, rng) for _ in range(20)]
    found = []
    for i in range(SAMPLES[size]):
        made = record_of(
            i, f"images/{i:06d}.png", do={"colour": "red", "ground": "dark"}, attributes=ATTRIBUTES, factual=ATTRIBUTES,
            target="1",
        )  # fmt: skip
        found.append(Sample(made["key"], images[i % 20], made))
    return found


def timed(call: Callable[[], Any]) -> npt.NDArray[np.float64]:
    """(2,): seconds by the clock and of the processor."""
    began = np.array([time.perf_counter(), time.process_time()])
    call()
    return np.array([time.perf_counter(), time.process_time()]) - began


def measure(directory: str, size: int, kind: str) -> dict[str, Any]:
    shard = samples(size, {"photograph": photograph, "flat": flat}[kind])
    place = open_destination(f"{directory}/{kind}{size}")
    numbers = count()

    def encode(of: list[Sample]) -> None:
        for sample in of:
            encode_image(sample, "png")

    def write(of: list[Sample]) -> None:
        with place.staging() as there:
            name = f"cf-train-{next(numbers):06d}.tar"
            place.commit(stage_shard(there, name, of, "p", "m", {"batch_size": 64}))

    alone, written, one_alone, one_written = [], [], [], []
    for _ in range(ROUNDS):
        alone.append(timed(lambda: encode(shard)))
        written.append(timed(lambda: write(shard)))
        one_alone.append(timed(lambda: encode(shard[:1])))
        one_written.append(timed(lambda: write(shard[:1])))
    quickest = [np.min(times, axis=0) for times in (alone, written, one_alone, one_written)]
    encoding = quickest[0] / len(shard)
    beside = (quickest[1] - quickest[0] - (quickest[3] - quickest[2])) / (len(shard) - 1)
    fixed = quickest[3] - quickest[2] - beside
    overhead = (beside + fixed / SHARD) / encoding
    figures = {"encode_us": encoding, "beside_us": beside, "shard_us": fixed}
    return {
        "what": "writing", "size": size, "images": kind,
        **{name: round(float(value[0]) * 1e6, 1) for name, value in figures.items()},
        **{f"{name}_processor": round(float(value[1]) * 1e6, 1) for name, value in figures.items()},
        "overhead": round(float(overhead[0]), 4), "overhead_processor": round(float(overhead[1]), 4),
    }  # fmt: skip


def main() -> None:
    with tempfile.TemporaryDirectory(dir=".") as directory:  # a disk, not a tmpfs
        for kind in ("photograph", "flat"):
            for size in SAMPLES:
                record(ROWS, measure(directory, size, kind), cpu=cpu(), command="python benchmarks/writing.py")


if __name__ == "__main__":
    main()
