"""The progress line of a run, the log that it leaves, and a summary of such logs.

    generate:  45%|####      | 4500/10000 [00:05<00:06, 812.40 img/s, rejected=3, retried=1]
    {"event": "shard", "time": "2026-01-31T12:00:00.000+00:00", "name": "cf-train-000004.tar", "images": 1000, ...}

Events: ``start``, ``shard``, ``retry``, ``failed``, ``end`` (with ``error`` where the run did not reach its end). A line is
appended in one write, so a crash leaves at most one torn line. Readers skip it, and the next run begins a new line after it.
The log is for people; only the manifest says which shards exist.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cfaug.errors import StorageError, UsageError, one_line

_log = logging.getLogger(__name__)
# always images per second: tqdm inverts a slow rate into "s/img", which is hard to compare
_BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}{postfix}]"
_MOST = 5  # how many slowest shards, failures and errors a summary shows


class Progress:
    """A context manager around a run. Its methods raise nothing once it is entered.

    Args:
        total: images of the plan; done: how many of them are committed already.
        enabled: show the line on stderr; where it is False, nothing is printed.
        log: file to append JSON lines to; tensorboard: directory for event files, whose step is the number of images done.

    Raises:
        UsageError: on construction, where TensorBoard is asked for and not installed.
        StorageError: on entering, where the log or the event files cannot be written.
    """

    def __init__(
        self,
        total: int,
        done: int = 0,
        enabled: bool = True,
        log: Path | None = None,
        tensorboard: Path | None = None,
    ) -> None:
        self.total, self.done, self.enabled = total, done, enabled
        self.images = self.shards = self.rejected = self.retried = 0
        self.lost: set[str] = set()
        """Names of the shards that failed for good."""
        self._path, self._events = log, tensorboard
        self._file: Any = None
        self._bar: Any = None
        self._board: Any = None
        self._ended, self._since = False, time.monotonic()
        self._writer = None if tensorboard is None else _summary_writer()

    def __enter__(self) -> Progress:
        from tqdm import tqdm

        where = self._path
        try:
            if self._path is not None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self._path.open("a+b", buffering=0)
                end = self._file.seek(0, 2)
                self._file.seek(max(0, end - 1))
                if end and self._file.read(1) != b"\n":  # the torn line of a killed process
                    self._file.write(b"\n")
            if self._writer is not None:
                where = self._events
                self._board = self._writer(log_dir=str(where))
        except OSError as error:
            self._close()
            raise StorageError(
                f"cannot write the run's log to {where}: {error.strerror}; choose another --out"
            ) from None
        self._since = time.monotonic()
        self._bar = tqdm(
            total=self.total, initial=self.done, desc="generate", unit=" img", bar_format=_BAR,
            smoothing=0.1, disable=not self.enabled,
        )  # fmt: skip
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if kind is not None and not self._ended:
            self.finished(error=one_line(f"{kind.__name__}: {error}" if str(error) else kind.__name__))
        self._close()

    def started(self, **facts: Any) -> None:
        """The run begins; `facts` (engine, workers, plan, ...) are for the log."""
        self._append("start", total=self.total, done=self.done, **facts)

    def shard(
        self,
        name: str,
        images: int,
        rejected: int = 0,
        seconds: float = 0.0,
        bytes: int = 0,
        attempt: int = 1,
        worker: str = "",
        reasons: Mapping[str, str] | None = None,
    ) -> None:
        """A shard is committed: `images` in it, `rejected` ones, the worker's `seconds`, `bytes` of the tar.

        `reasons`: key of each rejected row -> why the gate rejected it for good.
        """
        self.images += images
        self.done += images
        self.shards += 1
        self.rejected += rejected
        self.lost.discard(name)
        rate = round(images / seconds, 3) if seconds > 0 else None
        self._append(
            "shard", name=name, images=images, rejected=rejected, bytes=bytes, seconds=round(seconds, 3),
            images_per_second=rate, attempt=attempt, worker=worker, **({"reasons": dict(reasons)} if reasons else {}),
        )  # fmt: skip
        overall = self.images / max(1e-9, time.monotonic() - self._since)
        self._show(images, images_per_second=overall, images_per_second_of_a_worker=rate, rejected=self.rejected)

    def retry(self, name: str, reason: object) -> None:
        """A shard is tried again because of `reason`."""
        self.retried += 1
        self._append("retry", name=name, reason=one_line(reason, 500))
        self._show(0, retried=self.retried)

    def failed(self, name: str, reason: object) -> None:
        """A shard is given up because of `reason`."""
        self.lost.add(name)
        self._append("failed", name=name, reason=one_line(reason, 500))
        self._show(0, failed=len(self.lost))

    def finished(self, **facts: Any) -> None:
        """The run has ended, complete or with failed shards; the totals and `facts` are logged."""
        self._ended = True
        self._append(
            "end", shards=self.shards, images=self.images, rejected=self.rejected, retried=self.retried,
            failed=len(self.lost), seconds=round(time.monotonic() - self._since, 3), **facts,
        )  # fmt: skip

    def _show(self, images: int, **scalars: float | None) -> None:
        counts = {"rejected": self.rejected, "retried": self.retried}
        self._bar.set_postfix(counts | ({"failed": len(self.lost)} if self.lost else {}), refresh=not images)
        self._bar.update(images)
        for name, value in scalars.items():
            if self._board is not None and value is not None:
                self._board.add_scalar(f"generate/{name}", value, self.done)

    def _append(self, event: str, **facts: Any) -> None:
        if self._file is None:
            return
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        content = json.dumps({"event": event, "time": now, **facts}, default=str).encode() + b"\n"
        try:
            if self._file.write(content) < len(content):
                raise OSError("only a part of a line was written")
        except OSError as error:
            # the run goes on: where the disk is full, writing a shard fails too, with a better message than this
            _log.warning("no more lines in %s: %s", self._path, error.strerror or error)
            self._file.close()
            self._file = None

    def _close(self) -> None:
        for one in (self._bar, self._board, self._file):
            if one is not None:
                one.close()


def _summary_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UsageError(
            'generate.tensorboard needs the package tensorboard, which is not installed; pip install "cfaug[tensorboard]"'
        ) from None
    return SummaryWriter


@dataclass(frozen=True)
class Stats:
    """The summary of the logs of a run, summed over all attempts: a shard that was made twice counts twice.

    Attributes:
        runs: how often generation was started.
        shards, images, rejected, bytes: of the shards that were committed.
        seconds: of work, summed over the workers.
        workers: worker -> (images, seconds of work).
        slowest: (name, seconds) of the slowest shards, slowest first; at most five.
        retried: how often a shard was tried again.
        reasons: criterion of the gate -> rows that it rejected for good.
        failed: name -> reason of the shards that were given up and not made later.
        errors: what ended runs early, the last five.
        torn: lines that are not events, where a process was killed while it wrote.
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
    reasons: dict[str, int] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    errors: tuple[str, ...] = ()
    torn: int = 0

    @property
    def rates(self) -> dict[str, float]:
        """Worker -> images per second of its work."""
        return {worker: images / seconds for worker, (images, seconds) in self.workers.items() if seconds > 0}

    def to_json(self) -> dict[str, Any]:
        fields = {name: value for name, value in vars(self).items() if name not in ("workers", "torn")}
        rates = {worker: round(rate, 3) for worker, rate in sorted(self.rates.items())}
        changed = {"seconds": round(self.seconds, 3), "slowest": [list(pair) for pair in self.slowest]}
        return {**fields, **changed, "errors": list(self.errors), "images_per_second": rates, "torn_lines": self.torn}

    def __str__(self) -> str:
        rates = sorted(self.rates.values())
        lines = [f"{self.images} images in {self.shards} shards, {self.seconds:.0f} s of work, {self.runs} run(s)"]
        if rates:
            middle = rates[len(rates) // 2]
            lines.append(f"{len(rates)} worker(s): {rates[0]:.1f} to {rates[-1]:.1f} img/s each (median {middle:.1f})")
        if self.slowest:
            lines.append("slowest: " + ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self.slowest))
        lines.append(f"rejected {self.rejected}, retried {self.retried}, failed {len(self.failed)}")
        lines += [f"rejected by the gate: {name} {count}" for name, count in self.reasons.items()]
        lines += [f"failed: {name}: {reason}" for name, reason in sorted(self.failed.items())[:_MOST]]
        return "\n".join([*lines, *(f"ended early: {error}" for error in self.errors[-1:])])


def read_stats(place: str | Path) -> Stats | None:
    """The summary of a log file, or of all ``stats*.jsonl`` of a directory; None where there is none.

    A line that cannot be read is counted as torn.
    """
    place = Path(place)
    paths = sorted(place.glob("stats*.jsonl")) if place.is_dir() else [place] if place.is_file() else []
    if not paths:
        return None
    events: dict[str, list[dict[str, Any]]] = {name: [] for name in ("start", "shard", "retry", "failed", "end")}
    torn = 0
    for path in paths:
        try:
            with path.open("rb") as handle:
                lines = [line for line in handle if line.strip()]
        except OSError as error:
            raise StorageError(f"cannot read {path}: {error.strerror}; check its permissions") from None
        for line in lines:
            try:
                row = _row(line)
                events.get(str(row.get("event")), []).append(row)
            except (KeyError, ValueError, OverflowError, RecursionError):
                torn += 1
    made: dict[
        str, str
    ] = {}  # name -> last time it was made; ranks have files of their own, so the order of lines does not say
    workers: dict[str, tuple[int, float]] = {}
    for row in events["shard"]:
        made[row["name"]] = max(made.get(row["name"], ""), row["time"])
        images, seconds = workers.get(row["worker"], (0, 0.0))
        workers[row["worker"]] = images + row["images"], seconds + row["seconds"]
    slowest = sorted(((row["name"], row["seconds"]) for row in events["shard"]), key=lambda pair: pair[1], reverse=True)
    return Stats(
        runs=len(events["start"]), shards=len(events["shard"]), retried=len(events["retry"]), torn=torn,
        **{name: sum(row[name] for row in events["shard"]) for name in ("images", "rejected", "bytes", "seconds")},
        workers=workers, slowest=tuple(slowest[:_MOST]), reasons=_reasons(events["shard"]),
        failed={r["name"]: r["reason"] for r in events["failed"] if made.get(r["name"], "") <= r["time"]},
        errors=tuple(str(row["error"]) for row in events["end"] if "error" in row)[-_MOST:],
    )  # fmt: skip


def _reasons(shards: list[dict[str, Any]]) -> dict[str, int]:
    """How many rows each criterion rejected, the most first; a row may fail several."""
    said = [reason for row in shards for reason in row.get("reasons", {}).values()]
    return dict(Counter(name for reason in said for name in str(reason).split(", ") if name).most_common())


def _row(line: bytes) -> dict[str, Any]:
    """The event of a line, with every field that the summary needs; ValueError or KeyError where it is not one."""
    row = json.loads(line)
    if not isinstance(row, dict) or not line.endswith(b"\n"):
        raise ValueError(line)
    wanted = {"shard": ("name", "worker"), "failed": ("name", "time", "reason")}.get(str(row.get("event")), ())
    row |= {name: str(row[name]) for name in wanted} | {"time": str(row.get("time", ""))}
    if row.get("event") == "shard":
        for name in ("images", "rejected", "bytes", "seconds"):
            value = row[name]
            if type(value) not in (int, float) or not math.isfinite(value) or value < 0:
                raise ValueError(line)
            row[name] = float(value) if name == "seconds" else int(value)
    return row
