"""What the logs of a run say (``stats*.jsonl``, written by :class:`cfaug.offline.progress.Progress`), in a few figures.

It does not say what exists: a log may have lost its last line, the manifest alone vouches for shards.
"""

from __future__ import annotations

import heapq
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cfaug.errors import StorageError

_SLOWEST = 5


@dataclass(frozen=True)
class Stats:
    """What the logs of a run say. Sums over all its attempts: a shard that was made twice counts twice.

    Attributes:
        runs: how often generation was started.
        shards, images, rejected, bytes: committed, and what was in them.
        seconds: of work, summed over the workers.
        workers: worker -> (images, seconds of work).
        slowest: (name, seconds) of the slowest shards, slowest first; at most five.
        retried: how often a shard was tried again.
        failed: name -> reason of the shards that were given up and not made later.
        errors: what ended runs early.
        torn: lines that are none, where a process was killed while it wrote.
    """

    runs: int = 0
    shards: int = 0
    images: int = 0
    rejected: int = 0
    bytes: int = 0
    seconds: float = 0.0
    workers: dict[str, tuple[int, float]] = field(default_factory=dict)
    slowest: tuple[tuple[str, float], ...] = ()
    retried: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    errors: tuple[str, ...] = ()
    torn: int = 0

    @property
    def rates(self) -> dict[str, float]:
        """Worker -> images a second of its work."""
        return {worker: images / seconds for worker, (images, seconds) in self.workers.items() if seconds > 0}

    def to_json(self) -> dict[str, Any]:
        return {
            "runs": self.runs, "shards": self.shards, "images": self.images, "rejected": self.rejected,
            "bytes": self.bytes, "seconds": round(self.seconds, 3),
            "images_per_second": {worker: round(rate, 3) for worker, rate in sorted(self.rates.items())},
            "slowest": [list(pair) for pair in self.slowest], "retried": self.retried, "failed": self.failed,
            "errors": list(self.errors), "torn_lines": self.torn,
        }  # fmt: skip

    def __str__(self) -> str:
        rates = sorted(self.rates.values())
        lines = [f"{self.images} images in {self.shards} shards, {self.seconds:.0f} s of work, {self.runs} run(s)"]
        if rates:
            middle = rates[len(rates) // 2]
            lines.append(f"{len(rates)} worker(s): {rates[0]:.1f} to {rates[-1]:.1f} img/s each (median {middle:.1f})")
        if self.slowest:
            lines.append("slowest: " + ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self.slowest))
        lines.append(f"rejected {self.rejected}, retried {self.retried}, failed {len(self.failed)}")
        lines += [f"failed: {name}: {reason}" for name, reason in sorted(self.failed.items())[:_SLOWEST]]
        return "\n".join([*lines, *(f"ended early: {error}" for error in self.errors[-1:])])


def read_stats(place: str | Path) -> Stats | None:
    """The summary of a log file, or of all ``stats*.jsonl`` of a directory; None where there is none.

    Streams: memory grows with workers and failed shards, not with lines. A line that cannot be read is counted as torn.
    """
    place = Path(place)
    paths = sorted(place.glob("stats*.jsonl")) if place.is_dir() else [place] if place.is_file() else []
    if not paths:
        return None
    counts = dict.fromkeys(("runs", "shards", "images", "rejected", "bytes", "retried", "torn"), 0)
    workers: dict[str, tuple[int, float]] = {}
    slowest: list[tuple[float, str]] = []
    failed: dict[str, tuple[str, str]] = {}
    errors: list[str] = []
    for row in _rows(paths):
        event = None if row is None else row.get("event")
        try:
            if row is None:
                counts["torn"] += 1
            elif event == "start":
                counts["runs"] += 1
            elif event == "retry":
                counts["retried"] += 1
            elif event == "failed":
                failed[str(row["name"])] = (str(row["time"]), str(row["reason"]))
            elif event == "end" and "error" in row:
                errors = [*errors[-_SLOWEST + 1 :], str(row["error"])]
            elif event == "shard":
                name, seconds, worker = str(row["name"]), _number(row["seconds"]), str(row["worker"])
                found = {key: int(_number(row[key])) for key in ("images", "rejected", "bytes")}
                for key, count in found.items():
                    counts[key] += count
                counts["shards"] += 1
                images, spent = workers.get(worker, (0, 0.0))
                workers[worker] = (images + found["images"], spent + seconds)
                slowest = heapq.nlargest(_SLOWEST, [*slowest, (seconds, name)])
        except (KeyError, ValueError, OverflowError):
            counts["torn"] += 1
    if failed:  # ranks and attempts have files of their own: what one gave up another may have made, in any of them
        for row in _rows(paths):
            if row is None or row.get("event") != "shard":
                continue
            name = str(row.get("name"))
            if name in failed and str(row.get("time")) > failed[name][0]:
                del failed[name]
    return Stats(
        **counts,
        seconds=sum(seconds for _, seconds in workers.values()),
        workers=workers,
        slowest=tuple((name, seconds) for seconds, name in slowest),
        failed={name: reason for name, (_, reason) in failed.items()},
        errors=tuple(errors),
    )


def _rows(paths: Sequence[Path]) -> Iterator[dict[str, Any] | None]:
    for path in paths:
        try:
            with path.open("rb") as handle:
                for line in handle:
                    if line.strip():
                        yield _row(line)
        except OSError as error:
            raise StorageError(f"cannot read {path}: {error.strerror}") from None


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and line.endswith(b"\n") else None


def _number(value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value) or value < 0:
        raise ValueError(value)
    return float(value)
