"""Engines: where the work runs. An engine only ever sees ``map(work, shards)``; it decides nothing about the bytes.

    results = engine.map(work, [0, 1, 2])        # unordered; work(shard) is pure

Here: in this process (workers = 0) or in spawned processes. An engine retries nothing and commits nothing: what was not
committed when a worker died is done by running the same command again.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from cfaug.errors import CfaugError, UsageError
from cfaug.offline.engines.protocol import Outcome, attempt

Result = TypeVar("Result")


class LocalEngine:
    """`workers` spawned processes of this machine; 0 runs in this process, without pickling anything.

    `work` is pickled once (plain pickle: torch's own would hand over one file descriptor per tensor) and unpickled once
    in each worker. Workers end when this process ends, however it ends, and when the iterator is closed early.
    """

    shared = False

    def __init__(self, workers: int) -> None:
        if type(workers) is not int or workers < 0:
            raise UsageError(f"expected a number of workers of 0 or more, got {workers!r}")
        self.workers = workers

    def map(self, work: Callable[[int], Result], shards: Sequence[int]) -> Generator[Outcome[Result], None, None]:
        """Yield ``work(shard)`` for every shard; a dead worker is a :class:`CfaugError`, work's own errors pass."""
        if self.workers == 0 or not shards:
            for shard in shards:
                yield attempt(work, shard)
            return
        try:
            payload = pickle.dumps(work)
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            raise UsageError(
                f"expected a model and a data set that can be pickled for worker processes ({error}): use workers=0"
            ) from None
        context = multiprocessing.get_context("spawn")
        ours, lifeline = context.Pipe(duplex=False)[::-1]
        pool = ProcessPoolExecutor(
            min(self.workers, len(shards)), mp_context=context, initializer=_start, initargs=(payload, lifeline)
        )
        finished = False
        try:
            for future in as_completed([pool.submit(_run, shard) for shard in shards]):
                yield future.result()
            finished = True
        except BrokenProcessPool:
            raise CfaugError(
                "a worker process died (killed, out of memory, or a script without `if __name__ == '__main__':`): "
                "committed shards are kept, run the same again to continue, with fewer workers if memory ran out"
            ) from None
        finally:
            if not finished:
                ours.close()  # the workers' end of file: they leave at once, in the middle of a shard or not
            pool.shutdown(wait=True, cancel_futures=True)
            ours.close()
            lifeline.close()


_payload: bytes = b""
_work: Callable[[int], Any] | None = None


def _start(payload: bytes, lifeline: Connection) -> None:
    """In a new worker: keep the work, and watch the pipe that ends with the parent (an orphan would never notice)."""
    global _payload
    _payload = payload
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    threading.Thread(target=_leave_with, args=(lifeline,), daemon=True).start()


def _leave_with(lifeline: Connection) -> None:
    try:
        lifeline.recv_bytes()
    except (EOFError, OSError):
        os._exit(1)


def _run(shard: int) -> Any:
    """Unpickled at the first shard, not in `_start`, so that a failure reaches the caller with its reason."""
    global _work, _payload
    if _work is None:
        _work = pickle.loads(_payload)  # our own parent wrote it
        _payload = b""
    return attempt(_work, shard)
