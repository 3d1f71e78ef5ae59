"""The manifest of ten million samples: what the first and the last commits cost, and what opening it takes.

    python benchmarks/manifest.py                 # 10 000 shards of 1000 samples each; about a minute

A dry run: each shard's tar and index are a few bytes, the rows are whole. One process commits all, and what a reader pays is
measured before and after the run is published. Costs of commits are medians, fsync included.
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
import tempfile
import time
import tracemalloc
from pathlib import Path

from rows import cpu, record

from cfaug.offline.commit import Destination
from cfaug.offline.format import ManifestRow
from cfaug.offline.read_committed import read_manifest
from cfaug.offline.storage import LocalStorage
from cfaug.offline.write_shard import Staged

ROWS = Path(__file__).parent / "results" / "offline.jsonl"
SHARDS, SAMPLES = 10_000, 1000
ENVIRONMENT: dict[str, str | int] = {
    "batch_size": 64, "threads": 1, "device": "cuda", "dtype": "float32", "diffusers": "0.42.0", "numpy": "2.2.6",
    "pillow": "12.0.0", "torch": "2.12.0+cu128", "webdataset": "1.0.2", "zuko": "1.6.0",
}  # fmt: skip


def staged(directory: Path, number: int) -> Staged:
    name = f"cf-train-{number:06d}"
    tar, index = directory / f"{name}.tar.partial", directory / f"{name}.index.jsonl.partial"
    digests = []
    for path in (tar, index):
        content = f"{path.name}\n".encode()
        path.write_bytes(content)
        digests.append(hashlib.sha256(content).hexdigest())
    row = ManifestRow(
        f"{name}.tar", SAMPLES, tar.stat().st_size, digests[0], f"{name}.index.jsonl", index.stat().st_size, digests[1],
        "p" * 64, "m" * 64, ENVIRONMENT,
    )  # fmt: skip
    return Staged(row, tar, index)


def main() -> None:
    parser = argparse.ArgumentParser(description="The cost of commits and of opening.")
    parser.add_argument("--shards", type=int, default=SHARDS)
    shards = parser.parse_args().shards
    with tempfile.TemporaryDirectory(dir=".") as directory:
        place, seconds = Destination(LocalStorage(Path(directory) / "shards")), []
        with place.session():
            for number in range(shards):
                shard = staged(place.storage.path, number)
                began = time.perf_counter()
                place.commit(shard)
                seconds.append(time.perf_counter() - began)
        first, last = statistics.median(seconds[1:101]), statistics.median(seconds[-100:])
        began = time.perf_counter()
        rows = read_manifest(place.storage)
        opening = time.perf_counter() - began
        began = time.perf_counter()
        found = len(place.intact())
        looking = time.perf_counter() - began
        began = time.perf_counter()
        place.publish([row.name for row in rows], {})
        publishing = time.perf_counter() - began
        began = time.perf_counter()
        read_manifest(place.storage)
        finished = time.perf_counter() - began
        del rows
        tracemalloc.start()
        before, _ = tracemalloc.get_traced_memory()
        rows = read_manifest(place.storage)
        held, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        size = (place.storage.path / "manifest.jsonl").stat().st_size
    record(
        ROWS,
        {
            "what": "manifest", "shards": len(rows), "samples": len(rows) * SAMPLES, "intact": found,
            "commit_first_100_us": round(first * 1e6), "commit_last_100_us": round(last * 1e6),
            "last_over_first": round(last / first, 3), "open_while_it_runs_s": round(opening, 3),
            "publish_s": round(publishing, 3), "open_s": round(finished, 3), "intact_s": round(looking, 3), "bytes_a_row": round(size / len(rows)),
            "manifest_bytes": size, "reader_bytes_a_row": round((held - before) / len(rows)), "reader_peak_bytes": peak - before,
        },
        cpu=cpu(), command=f"python benchmarks/manifest.py --shards {shards}",
    )  # fmt: skip


if __name__ == "__main__":
    main()
