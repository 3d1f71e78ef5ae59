"""What a plan costs: rows a second written, bytes a row, memory, opening, and one worker's share of it.

    python benchmarks/plan.py                              # 1e5, 1e6 and 1e7 rows
    python benchmarks/plan.py --rows 100000000 --directory /big/disk

Every size is measured in a process of its own, so that the peak memory is its own: 10 000 sources (the memory is theirs,
not the rows'), balance of two attributes, a third of the rows null interventions. The plan is written below --directory
and removed at the end. Partitioning: worker 1 of --workers reads the rows of its shards (every W-th), timed on at most
--sampled of them, which lie evenly over the plan; ``partition_seconds`` is scaled up to all of its shards.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rows import cpu, record

from cfaug.data import Attribute, Schema
from cfaug.offline import Plan
from cfaug.offline.plan.strategies import balance_groups

RESULTS = Path(__file__).parent / "results" / "offline.jsonl"
SOURCES = 10_000
SIZES = (100_000, 1_000_000, 10_000_000)
NULL_FRACTION = 1 / 3


def sources(n: int) -> tuple[pd.DataFrame, Schema]:
    """A table of `n` sources with three classes and two confounded attributes."""
    rng = np.random.default_rng(0)
    target = rng.integers(0, 3, n)
    other = rng.integers(0, 4, n)
    table = pd.DataFrame(
        {
            "species": [("gull", "tern", "wren")[k] for k in target],
            "place": [("land", "sea", "sky")[k] for k in target],
            "light": [("day", "dusk", "night", "dawn")[k] for k in other],
        },
        index=[f"images/{k:06d}.png" for k in range(n)],
    )
    return table, Schema([Attribute(name) for name in table], "species", ["place", "light"])


def measure(rows: int, directory: str, workers: int, sampled: int) -> dict[str, Any]:
    """The figures of one size, in this process."""
    table, schema = sources(SOURCES)
    base = _peak_mb()
    per_image = round(rows * (1 - NULL_FRACTION) / SOURCES)
    with tempfile.TemporaryDirectory(dir=directory) as place:
        start, used = time.perf_counter(), time.process_time()
        plan = balance_groups(table, schema, per_image, NULL_FRACTION)
        drawn = time.perf_counter() - start
        plan.save(place)
        written, used = time.perf_counter() - start, time.process_time() - used
        size = sum(path.stat().st_size for path in Path(place).iterdir())
        header = (Path(place) / "plan.json").stat().st_size
        start = time.perf_counter()
        loaded = Plan.load(place)
        opened = time.perf_counter() - start
        mine = loaded.shards()[1::workers]
        some = [mine[k * len(mine) // min(sampled, len(mine))] for k in range(min(sampled, len(mine)))]
        start = time.perf_counter()
        read = sum(len(loaded.rows_of(shard)) for shard in some)
        reading = time.perf_counter() - start
        return {
            "what": "plan", "rows": len(plan), "sources": SOURCES, "shards": len(plan.shards()),
            "parts": len(list(Path(place).glob("plan-*.jsonl"))),
            "write_seconds": round(written, 3), "rows_per_second": round(len(plan) / written),
            "rows_per_cpu_second": round(len(plan) / used), "draw_seconds": round(drawn, 3),
            "bytes_per_row": round(size / len(plan), 2), "header_bytes": header, "open_seconds": round(opened, 4),
            "workers": workers, "shards_read": len(some), "rows_read": read,
            "seconds_per_shard_read": round(reading / len(some), 5),
            "partition_seconds": round(reading / len(some) * len(mine), 1),
            "peak_mb": round(_peak_mb()), "peak_mb_before": round(base), "digest": plan.digest,
        }  # fmt: skip


def _peak_mb() -> float:
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="*", default=list(SIZES), help="sizes of the plans")
    parser.add_argument("--directory", default=tempfile.gettempdir(), help="where plans are written for a while")
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--sampled", type=int, default=50, help="shards that are read to time the partition")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    command = f"python benchmarks/plan.py --rows {' '.join(map(str, args.rows))}"
    for rows in args.rows:
        needed = rows * 160
        if shutil.disk_usage(args.directory).free < 1.2 * needed:
            parser.error(f"{rows} rows take about {needed / 1e9:.0f} GB, which {args.directory} does not have")
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found = pool.apply(measure, (rows, args.directory, args.workers, args.sampled))
        record(args.results, found, command=command, cpu=cpu())


if __name__ == "__main__":
    main()
