"""The manifest of ten million samples: what the first and the last commits cost, and what opening it takes.

    python benchmarks/manifest.py                 # 10 000 shards of 1000 samples each; about a minute

A dry run: each shard's tar and index are a few bytes, the rows are whole. One process commits all (it reads only what is
new), and at the end another commits for the first time (it reads all). Costs of commits are medians, fsync included.
"""

from __future__ import annotations

import hashlib
import statistics
import tempfile
import time
import tracemalloc
from pathlib import Path

from cfaug.offline.local_commit import LocalDestination
from rows import cpu, record

from cfaug.offline.committed import read_manifest
from cfaug.offline.format import ManifestRow
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
    with tempfile.TemporaryDirectory(dir=".") as directory:
        place, seconds = LocalDestination(Path(directory) / "shards"), []
        with place.session():
            for number in range(SHARDS):
                shard = staged(place.directory, number)
                began = time.perf_counter()
                place.commit(shard)
                seconds.append(time.perf_counter() - began)
        first, last = statistics.median(seconds[1:101]), statistics.median(seconds[-100:])
        newcomer, shard = LocalDestination(place.directory), staged(place.directory, SHARDS)
        began = time.perf_counter()
        newcomer.commit(shard)
        joining = time.perf_counter() - began
        began = time.perf_counter()
        rows = read_manifest(place.storage)
        opening = time.perf_counter() - began
        began = time.perf_counter()
        found = len(place.intact())
        looking = time.perf_counter() - began
        del rows
        tracemalloc.start()
        fresh = LocalDestination(place.directory)
        fresh._log.catch_up()
        kept, _ = tracemalloc.get_traced_memory()
        del fresh
        before, _ = tracemalloc.get_traced_memory()
        rows = read_manifest(place.storage)
        held, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        size = (place.directory / "manifest.jsonl").stat().st_size
    record(
        ROWS,
        {
            "what": "manifest", "shards": len(rows), "samples": len(rows) * SAMPLES, "intact": found,
            "commit_first_100_us": round(first * 1e6), "commit_last_100_us": round(last * 1e6),
            "last_over_first": round(last / first, 3), "first_commit_of_a_newcomer_s": round(joining, 3),
            "open_s": round(opening, 3), "intact_s": round(looking, 3), "bytes_a_row": round(size / len(rows)),
            "manifest_bytes": size, "committer_bytes_a_row": round(kept / len(rows)),
            "reader_bytes_a_row": round((held - before) / len(rows)), "reader_peak_bytes": peak - before,
        },
        cpu=cpu(), command="python benchmarks/manifest.py",
    )  # fmt: skip


if __name__ == "__main__":
    main()
