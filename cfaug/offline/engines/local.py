"""The engine of one machine: spawned processes that each hold the work and pull one shard after the other.

Each worker is a ``concurrent.futures.ProcessPoolExecutor`` of one process. A pool of several processes would break as a whole
when one of them dies, and lose every shard that is being made.

A worker ends when its parent has ended, in whatever way: a thread of it waits for that. Until this thread runs (milliseconds,
or half a second where the machine is busy) the worker may still commit its shard, which does no harm: commits are idempotent
(:mod:`cfaug.offline.commit`), and the next run finds the shard or makes the same bytes. A worker that is still importing when
its parent ends finishes the import and then ends; it is given no shard before it is ready.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from cfaug.errors import CfaugError
from cfaug.offline.engines.protocol import Outcome, PackedWork, attempt, check_workers, one_thread, pack, this_worker
from cfaug.offline.engines.pull import Died, pull

Result = TypeVar("Result")
SPAWN = multiprocessing.get_context("spawn")  # not fork: CUDA and thread pools do not survive one
HELD: dict[str, PackedWork] = {}  # in a worker: its work


class LocalEngine:
    """`workers` spawned processes of this machine; 0 runs in this process, without pickling anything.

    `work` is pickled once, into a temporary file, and unpickled once in each worker. The workers end when this process ends, in
    whatever way, and when the iterator is closed early, also in the middle of a shard.
    """

    shared = False

    def __init__(self, workers: int) -> None:
        check_workers(workers, 0, "local")
        self.workers = workers

    def map(self, work: Callable[[int], Result], shards: Sequence[int]) -> Generator[Outcome[Result], None, None]:
        """Yield an outcome for every shard.

        Raises:
            UsageError: `work` cannot be pickled.
            CfaugError: several workers in a row ended before they were ready.
        """
        if self.workers == 0:
            for shard in shards:
                yield attempt(work, shard)
        elif shards:
            # a file: a pipe that a worker dies without reading holds up whoever writes more into it than it has room for
            with tempfile.NamedTemporaryFile(prefix="cfaug-work-") as file:
                file.write(pack(work))
                file.flush()
                yield from pull(Processes(file.name), shards, self.workers)


@dataclass(frozen=True)
class Worker:
    """One process, and the pool that holds only this process."""

    pool: ProcessPoolExecutor
    process: Any


class Processes:
    """Spawned processes as a :class:`~cfaug.offline.engines.pull.Crew`."""

    def __init__(self, work: str) -> None:
        self._work = work  # the file that it is in

    def start(self) -> tuple[Worker, Future[Any]]:
        pool = ProcessPoolExecutor(1, SPAWN, prepare, (self._work,))
        try:
            with one_thread(), no_interrupt():
                ready = pool.submit(os.getpid)
        except OSError as error:
            raise CfaugError(f"cannot start a worker process ({error.strerror}); use fewer workers") from None
        (process,) = pool._processes.values()  # to end it in the middle of a shard; Python 3.14 has kill_workers()
        return Worker(pool, process), ready

    def ask(self, worker: Worker, shard: int) -> Future[Any]:
        try:
            return worker.pool.submit(make, shard)
        except BrokenProcessPool as error:  # the worker ended between two shards
            future: Future[Any] = Future()
            future.set_exception(error)
            return future

    def done(self, futures: Iterable[Future[Any]]) -> Iterable[Future[Any]]:
        return wait(futures, return_when=FIRST_COMPLETED).done

    def result(self, worker: Worker, future: Future[Any]) -> Any:
        try:
            return future.result()
        except BrokenProcessPool:
            worker.process.join(5)
            raise Died(how_it_ended(worker.process.exitcode), this_worker(worker.process.pid)) from None

    def stop(self, worker: Worker) -> None:
        worker.process.kill()
        worker.pool.shutdown(cancel_futures=True)


def how_it_ended(code: int | None) -> str:
    """An exit code in words: ``exit code -9, SIGKILL``."""
    names = {-one.value: f", {one.name}" for one in signal.Signals}
    return f"exit code {code}{names.get(code or 0, '')}"


def prepare(work: str) -> None:
    """Called once in a new worker: it leaves Ctrl-C to the parent, will end with the parent, and keeps the work."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=_end_with_parent, daemon=True).start()
    HELD["work"] = PackedWork(Path(work).read_bytes())


def make(shard: int) -> Outcome[Any]:
    """Called in a worker: returns the outcome of one shard."""
    return HELD["work"](shard)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()  # also when the parent was killed
        os._exit(1)


@contextmanager
def no_interrupt() -> Iterator[None]:
    """Processes that are started in here see no Ctrl-C until they ignore it: the parent alone decides what it means."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
