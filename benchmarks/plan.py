"""What a plan costs: seconds to make, write and open it, bytes per row, and the peak memory of a process that does so.

    python benchmarks/plan.py                              # 1e5, 1e6 and 1e7 rows
    python benchmarks/plan.py --rows 1000000 --directory /big/disk

Every size is made and written in one process and opened in a second one, so that each peak (VmHWM of /proc/self/status) is
its own: 10 000 sources, balance of two attributes, a third of the rows null interventions. The plan is written below
--directory and removed at the end. The limits that ten million rows must keep are 1 GB and 60 s for all three together.
"""

from __future__ import annotations

import argparse
import multiprocessing
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rows import cpu, record

from cfaug.data import Attribute, Schema
from cfaug.offline import Plan, balance_groups

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


def made_and_written(rows: int, place: str) -> dict[str, Any]:
    """The figures of making and writing a plan, in this process."""
    table, schema = sources(SOURCES)
    base, start, cpu_start = peak_mb(), time.perf_counter(), time.process_time()
    plan = balance_groups(table, schema, round(rows * (1 - NULL_FRACTION) / SOURCES), NULL_FRACTION)
    made = time.perf_counter() - start
    made_peak = peak_mb()
    plan.save(place)
    written = time.perf_counter() - start - made
    size = sum(path.stat().st_size for path in Path(place).iterdir())
    return {
        "what": "plan", "rows": len(plan), "sources": SOURCES, "shards": len(plan.shards()),
        "make_seconds": round(made, 2), "write_seconds": round(written, 2), "bytes_per_row": round(size / len(plan), 2),
        "rows_per_second": round(len(plan) / (made + written)), "import_mb": round(base), "make_peak_mb": round(made_peak),
        "write_peak_mb": round(peak_mb()), "make_and_write_cpu_seconds": round(time.process_time() - cpu_start, 1),
        "digest": plan.digest,
    }  # fmt: skip


def opened(place: str) -> dict[str, Any]:
    """The figures of opening a plan and looking at one of its shards, in this process."""
    start, cpu_start = time.perf_counter(), time.process_time()
    plan = Plan.load(place)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    peak = peak_mb()
    start = time.perf_counter()
    shards = plan.shards()[:: max(1, len(plan.shards()) // 50)]
    rows = sum(len(plan.rows_of(shard)) for shard in shards)
    return {
        "open_seconds": round(seconds, 2), "open_cpu_seconds": round(cpu_seconds, 1), "open_peak_mb": round(peak),
        "microseconds_per_row_looked_at": round((time.perf_counter() - start) / rows * 1e6, 2),
    }  # fmt: skip


def peak_mb() -> float:
    """The largest resident memory of this process so far."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="*", default=list(SIZES), help="sizes of the plans")
    parser.add_argument("--directory", default=tempfile.gettempdir(), help="where plans are written for a while")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    command = f"python benchmarks/plan.py --rows {' '.join(map(str, args.rows))}"
    context = multiprocessing.get_context("spawn")
    for rows in args.rows:
        if shutil.disk_usage(args.directory).free < rows * 200:
            parser.error(f"{rows} rows take about {rows * 160 / 1e9:.1f} GB, which {args.directory} does not have")
        with tempfile.TemporaryDirectory(dir=args.directory) as place:
            with context.Pool(1) as pool:
                found = pool.apply(made_and_written, (rows, place))
            with context.Pool(1) as pool:
                found |= pool.apply(opened, (place,))
        found["total_seconds"] = round(sum(found[f"{did}_seconds"] for did in ("make", "write", "open")), 1)
        record(args.results, found, command=command, cpu=cpu())


if __name__ == "__main__":
    main()
