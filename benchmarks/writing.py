"""What a shard costs beside the encoding of its images: staging and committing it, against encoding alone.

    python benchmarks/writing.py            # one row a size and kind of image; about two minutes on one core

Both sides encode the same images in the same way, alternately; the ratio of the quickest of five rounds is given, by the
clock (fsync included) and by processor time (which a busy machine disturbs less).
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rows import cpu, record

from cfaug.offline.destination import open_destination
from cfaug.offline.format import Sample
from cfaug.offline.staging import _png, stage_shard

ROWS = Path(__file__).parent / "results" / "offline.jsonl"
SAMPLES = {32: 1000, 64: 1000, 128: 500, 224: 200, 512: 50}
ROUNDS = 5
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
        key = f"train-{i:09d}"
        made = {
            "schema": 1, "key": key, "source_key": f"images/{i:06d}.png", "source_digest": "0" * 64, "split": "train",
            "do": {"colour": "red", "ground": "dark"}, "attributes": ATTRIBUTES, "factual": ATTRIBUTES, "target": "1",
            "seed": i, "replica": 0, "model": "0" * 64, "quality": {"change_l1": 0.25},
        }  # fmt: skip
        found.append(Sample(key, images[i % 20], made))
    return found


def timed(call: Any) -> tuple[float, float]:
    clock, processor = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - clock, time.process_time() - processor


def measure(directory: str, size: int, kind: str) -> dict[str, Any]:
    shard = samples(size, {"photograph": photograph, "flat": flat}[kind])
    place = open_destination(f"{directory}/{kind}{size}")
    number = 0

    def encode() -> None:
        for sample in shard:
            _png(sample)

    def write() -> None:
        with place.staging() as there:
            place.commit(stage_shard(there, f"cf-train-{number:06d}.tar", shard, "p", "m", {"batch_size": 64}))

    alone, written = [], []
    for number in range(ROUNDS):  # noqa: B007  # write() takes it
        alone.append(timed(encode))
        written.append(timed(write))
    (wall, busy), (wall_written, busy_written) = (tuple(map(min, zip(*times))) for times in (alone, written))
    count = len(shard)
    return {
        "benchmark": "writing", "size": size, "images": kind, "samples": count,
        "encode_us": round(wall / count * 1e6, 1), "beside_us": round((wall_written - wall) / count * 1e6, 1),
        "overhead": round(wall_written / wall - 1, 4), "overhead_processor": round(busy_written / busy - 1, 4),
    }  # fmt: skip


def main() -> None:
    with tempfile.TemporaryDirectory(dir=".") as directory:  # a disk, not a tmpfs
        for kind in ("photograph", "flat"):
            for size in SAMPLES:
                record(ROWS, measure(directory, size, kind), machine=cpu(), command="python benchmarks/writing.py")


if __name__ == "__main__":
    main()
