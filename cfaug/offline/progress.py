"""What a run shows while it generates, and the log it leaves: one tqdm line, JSON lines, scalars for TensorBoard.

    generate:  45%|####      | 4500/10000 [00:05<00:06, 812.40 img/s, rejected=3, retried=1]
    {"event": "shard", "time": "2026-01-31T12:00:00.000+00:00", "name": "cf-train-000004.tar", "images": 1000, ...}

Events: ``start``, ``shard``, ``retry``, ``failed``, ``end`` (with ``error`` where the run did not reach its end). A line is
appended in one write, so a crash leaves at most one torn line, which readers pass over and the next run does not write on.
The log is for people and for :func:`cfaug.offline.inspect.stats.read_stats`: what exists is said by the manifest alone.
"""

from __future__ import annotations

import json
import logging
import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cfaug.errors import StorageError, UsageError, one_line

_log = logging.getLogger(__name__)
# the rate is always per second: tqdm turns a slow one over into "s/img", which nobody compares with anything
_BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}{postfix}]"


class Progress:
    """Context manager around a run; every method may be called in any order and raises nothing once it is entered.

    Args:
        total: images of the plan.
        done: of which are committed already.
        enabled: show the line on stderr; False: not a byte is printed.
        log: file to append JSON lines to; None: no log.
        tensorboard: directory for event files, their step being the images done; None: none.

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
        self._file: int | None = None
        self._bar: Any = None
        self._board: Any = None
        self._ended = False
        self._since = time.monotonic()
        self._writer = None if tensorboard is None else _summary_writer()

    def __enter__(self) -> Progress:
        from tqdm import tqdm

        try:
            if self._path is not None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._file = _open(self._path)
            if self._writer is not None:
                self._board = self._writer(log_dir=str(self._events))
        except OSError as error:
            where = self._path if self._writer is None or self._file is None else self._events
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
            self._end({"error": one_line(f"{kind.__name__}: {error}" if str(error) else kind.__name__)})
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
    ) -> None:
        """A shard is committed: `images` in it, `rejected` ones, the worker's `seconds`, `bytes` of the tar."""
        self.images += images
        self.done += images
        self.shards += 1
        self.rejected += rejected
        self.lost.discard(name)
        rate = images / seconds if seconds > 0 else None
        self._append(
            "shard", name=name, images=images, rejected=rejected, bytes=bytes, seconds=round(seconds, 3),
            images_per_second=None if rate is None else round(rate, 3), attempt=attempt, worker=worker,
        )  # fmt: skip
        self._show(images)
        elapsed = time.monotonic() - self._since
        self._scalar("images_per_second", self.images / elapsed if elapsed > 0 else None)
        self._scalar("images_per_second_of_a_worker", rate)
        self._scalar("rejected", self.rejected)

    def retry(self, name: str, reason: object) -> None:
        """A shard is tried again because of `reason`."""
        self.retried += 1
        self._append("retry", name=name, reason=one_line(reason, 500))
        self._show()
        self._scalar("retried", self.retried)

    def failed(self, name: str, reason: object) -> None:
        """A shard is given up because of `reason`."""
        self.lost.add(name)
        self._append("failed", name=name, reason=one_line(reason, 500))
        self._show()
        self._scalar("failed", len(self.lost))

    def finished(self, **facts: Any) -> None:
        """The run comes to its end, complete or with failed shards; totals and `facts` are for the log."""
        self._end(facts)

    def _end(self, facts: dict[str, Any]) -> None:
        self._ended = True
        self._append(
            "end", shards=self.shards, images=self.images, rejected=self.rejected, retried=self.retried,
            failed=len(self.lost), seconds=round(time.monotonic() - self._since, 3), **facts,
        )  # fmt: skip

    def _show(self, images: int = 0) -> None:
        if self._bar is None:
            return
        counts = {
            "rejected": self.rejected,
            "retried": self.retried,
            **({"failed": len(self.lost)} if self.lost else {}),
        }
        self._bar.set_postfix(counts, refresh=not images)
        self._bar.update(images)

    def _scalar(self, name: str, value: float | None) -> None:
        if self._board is not None and value is not None:
            self._board.add_scalar(f"generate/{name}", value, self.done)

    def _append(self, event: str, **facts: Any) -> None:
        if self._file is None:
            return
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        content = json.dumps({"event": event, "time": now, **facts}, default=str).encode() + b"\n"
        try:
            if os.write(self._file, content) < len(content):
                raise OSError("only a part of a line was written")
        except OSError as error:
            # the images are what the run is for: a disk that is full fails them by name, with a better line than this
            _log.warning("no more lines in %s: %s", self._path, error.strerror or error)
            os.close(self._file)
            self._file = None

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        if self._board is not None:
            self._board.close()
        if self._file is not None:
            os.close(self._file)
        self._bar = self._board = self._file = None


def _open(path: Path) -> int:
    """A descriptor to append to; what a killed process left without its newline gets one."""
    handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    size = os.fstat(handle).st_size
    if size and os.pread(handle, 1, size - 1) != b"\n":
        os.write(handle, b"\n")
    return handle


def _summary_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UsageError(
            'generate.tensorboard needs the package tensorboard, which is not installed; pip install "cfaug[tensorboard]"'
        ) from None
    return SummaryWriter
