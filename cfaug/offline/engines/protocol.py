"""What an engine is: ``map(work, shards)``, and an :class:`Outcome` for every shard that it was given and tried.

    for outcome in engine.map(work, [0, 1, 2]): ...        # unordered; work(shard) is pure and commits its own shard

An engine decides nothing about the bytes, retries nothing and knows no destination: whoever calls it looks at the
outcomes and maps again what failed.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from cfaug.errors import CfaugError, UsageError, one_line
from cfaug.offline.os_errors import is_transient

log = logging.getLogger(__name__)
_told: list[bool] = []
Result = TypeVar("Result")
Returned = TypeVar("Returned", covariant=True)


@dataclass(frozen=True)
class Outcome(Generic[Result]):
    """What became of one shard: `result`, or the `error` that kept it from being made.

    `transient`: trying again may help (a dead worker, a storage that did not answer); false for what the message of a
    :class:`CfaugError` explains. `worker` says where it ran: ``host:pid``.
    """

    shard: int
    result: Result | None = None
    error: Exception | None = None
    transient: bool = False
    worker: str = ""


class Engine(Protocol):
    """Runs `work` for each shard and yields the outcomes as they come, in any order.

    `shared`: several processes call :meth:`map` with the same list and each does its part of it, so the caller's outcomes
    are not all there is.
    """

    shared: bool

    def map(self, work: Callable[[int], Result], shards: Sequence[int]) -> Generator[Outcome[Result], None, None]:
        """Closing the iterator early stops the work as soon as the engine can."""
        ...


def this_worker(pid: int | None = None) -> str:
    """``host:pid`` of this process, or of a different one of this machine: what :attr:`Outcome.worker` says."""
    return f"{socket.gethostname()}:{os.getpid() if pid is None else pid}"


def check_workers(workers: object, least: int, engine: str) -> None:
    """:class:`UsageError` unless `workers` is a whole number of `least` or more."""
    if type(workers) is not int or workers < least:
        raise UsageError(
            f"expected a number of workers of {least} or more for engine {engine}, got {workers!r}: set generate.workers"
        )


def attempt(work: Callable[[int], Result], shard: int) -> Outcome[Result]:
    """``work(shard)``, with whatever it raises as an outcome; a CfaugError explains itself, of others an OSError may pass."""
    worker = this_worker()
    try:
        return Outcome(shard, work(shard), worker=worker)
    except CfaugError as error:
        return Outcome(shard, error=error, transient=error.transient, worker=worker)
    except Exception as error:
        if not _told:  # a bug, ours or the model's: one line is too little to find it by, one traceback enough
            _told.append(True)
            log.exception("shard %d failed in %s", shard, worker)
        # a process whose graphics card has failed fails from then on; another attempt is another process
        passing = is_transient(error) if isinstance(error, OSError) else "CUDA error" in str(error)
        said = one_line(f"{type(error).__name__}: {error}")
        return Outcome(shard, error=CfaugError(said), transient=passing, worker=worker)
