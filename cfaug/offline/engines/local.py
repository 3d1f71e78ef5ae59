"""The engine of one machine: spawned processes that each hold the work and pull one shard after the other.

A worker is given its next shard when it has finished one, so a fast worker does more of them. One that dies (killed, out
of memory, a fault of a driver) costs the shard it had in hand and nothing else: that shard's outcome names how the
process ended, another process takes its place, the others do not notice.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import pickle
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

from cfaug.errors import CfaugError, UsageError
from cfaug.offline.engines.protocol import Outcome, attempt, check_workers, this_worker
from cfaug.offline.engines.worker import ADVICE, PackedWork, died, one_thread, pack

Result = TypeVar("Result")
STARTS = 3  # deaths in a row before a worker of a slot has ever been ready: more of the same would not help
SPAWN = multiprocessing.get_context("spawn")  # not fork: CUDA and thread pools do not survive one


class LocalEngine:
    """`workers` spawned processes of this machine; 0 runs in this process, without pickling anything.

    `work` is pickled once and unpickled once in each worker. Workers end when this process ends, however it ends, and
    when the iterator is closed early, in the middle of a shard or not.
    """

    shared = False

    def __init__(self, workers: int) -> None:
        check_workers(workers, 0, "local")
        self.workers = workers

    def map(self, work: Callable[[int], Result], shards: Sequence[int]) -> Generator[Outcome[Result], None, None]:
        """Yield an outcome for every shard.

        Raises:
            UsageError: `work` cannot be pickled, or no worker gets as far as being ready.
            CfaugError: workers are killed before they are ready, again and again.
        """
        if self.workers == 0 or not shards:
            for shard in shards:
                yield attempt(work, shard)
            return
        payload = pack(work)
        lifeline, ours = SPAWN.Pipe(duplex=False)
        slots = [_Slot(payload, lifeline) for _ in range(min(self.workers, len(shards)))]

        def end() -> None:
            ours.close()  # the workers' end of file
            for slot in slots:
                slot.end()

        atexit.register(end)  # an iterator that nobody closed: otherwise the interpreter waits for the workers
        try:
            yield from _pull(slots, deque(shards))
        finally:
            atexit.unregister(end)
            end()
            lifeline.close()


def _pull(slots: list[_Slot], queue: deque[int]) -> Iterator[Outcome[Any]]:
    """Give each ready worker the next shard until all have been given and answered for."""
    for slot in slots:
        slot.start()
    ever_ready = False
    while working := [slot for slot in slots if slot.process is not None]:
        # the clock beside the pipes: a process that a dead worker left behind may hold them open
        wait([place for slot in working for place in slot.places], timeout=1.0)
        for slot in working:
            if not slot.has_news():
                continue
            outcome, code = slot.news()
            ever_ready = ever_ready or slot.ready
            if code is not None and outcome is None and queue:
                _refuse_to_go_on(code, ever_ready, [other for other in slots if other is not slot], slot)
            if code is not None:
                slot.end()
            if code is None or slot.unready < STARTS:
                slot.go_on(queue)
            if outcome is not None:
                yield outcome


def _refuse_to_go_on(code: int, ever_ready: bool, others: list[_Slot], slot: _Slot) -> None:
    """A worker that ended before it was ready had no shard to lose; raise where starting another would end the same."""
    if code >= 0 and not ever_ready:
        raise UsageError(
            f"a worker process ended before it could start ({died(code)}): a script needs its call below "
            "`if __name__ == '__main__':`, and what it imports must be importable again; or use workers=0"
        )
    if slot.unready >= STARTS and not any(other.process for other in others):
        raise CfaugError(f"worker processes end before they can start, {STARTS} in a row ({died(code)}): {ADVICE}")


class _Slot:
    """One worker process at a time, its pipe, and at most one shard in flight."""

    def __init__(self, payload: bytes, lifeline: Connection) -> None:
        self._payload, self._lifeline = payload, lifeline
        self.process: Any = None
        self.ready = False
        self.unready = 0  # deaths in a row before being ready
        self.shard: int | None = None

    def start(self) -> None:
        self._pipe, theirs = SPAWN.Pipe()
        self.process = SPAWN.Process(target=_serve, args=(theirs, self._lifeline))
        self.ready, self.shard = False, None
        try:
            with one_thread(), _no_interrupt():
                self.process.start()
        except OSError as error:
            self.process = None
            self._pipe.close()
            raise CfaugError(f"a worker process cannot be started ({error.strerror}): use fewer workers") from None
        finally:
            theirs.close()
        # the work may be larger than a pipe holds, and nobody reads it before the process is up: do not wait for that
        self._sender = threading.Thread(target=_send, args=(self._pipe, self._payload), daemon=True)
        self._sender.start()

    @property
    def places(self) -> list[Any]:
        return [self._pipe, self.process.sentinel]

    def has_news(self) -> bool:
        return self._pipe.poll() or self.process.exitcode is not None

    def news(self) -> tuple[Outcome[Any] | None, int | None]:
        """(outcome of the shard in flight if there was one, exit code if the process is dead)."""
        try:
            if self._pipe.poll():  # before its death is looked at: it may have answered first
                said = pickle.loads(self._pipe.recv_bytes())
                self.ready, self.unready, self.shard = True, 0, None
                return said, None
        except (EOFError, OSError):
            pass
        self.process.join(5)  # the pipe may end a moment before the process does
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
        code: int = self.process.exitcode
        if not self.ready:
            self.unready += 1
        if self.shard is None:
            return None, code
        told = CfaugError(f"worker process died ({died(code)}) at shard {self.shard}: {ADVICE}")
        return Outcome(self.shard, error=told, transient=True, worker=this_worker(self.process.pid)), code

    def go_on(self, queue: deque[int]) -> None:
        """The next shard, or a new process that will be given one, or the end."""
        if not queue:
            self.end()
        elif self.process is None:
            self.start()
        else:
            self.shard = queue.popleft()
            with suppress(OSError):  # it died just now: the next news
                self._pipe.send_bytes(pickle.dumps(self.shard))

    def end(self) -> None:
        """Kill: nothing that matters is in flight, and a shard half made is swept by whoever writes next."""
        if self.process is None:
            return
        self.process.kill()
        self.process.join()
        self._sender.join()  # with the process gone, its pipe is broken
        self._pipe.close()
        self.process.close()
        self.process = None


def _send(pipe: Connection, payload: bytes) -> None:
    with suppress(OSError):
        pipe.send_bytes(payload)


@contextmanager
def _no_interrupt() -> Iterator[None]:
    """Processes started in here do not see a Ctrl-C before they ignore it: the parent decides what it means."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(tasks: Connection, lifeline: Connection) -> None:
    """In a new worker: say that it is there, then answer each shard with its outcome, until killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=_leave_with, args=(lifeline,), daemon=True).start()
    work = PackedWork(tasks.recv_bytes())
    tasks.send_bytes(pickle.dumps(None))
    while True:
        shard: int = pickle.loads(tasks.recv_bytes())
        tasks.send_bytes(pickle.dumps(work(shard)))


def _leave_with(lifeline: Connection) -> None:
    """Watch the pipe that ends with the parent: an orphan in the middle of a shard would never notice."""
    try:
        lifeline.recv_bytes()
    except (EOFError, OSError):
        os._exit(1)
