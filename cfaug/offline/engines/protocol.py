"""The protocol of an engine: ``map(work, shards)`` yields an :class:`Outcome` for every shard that was tried.

    for outcome in engine.map(work, [0, 1, 2]): ...        # in any order; work(shard) commits its own shard

An engine does not influence the bytes, retries nothing and does not know the destination. Its caller looks at the outcomes
and maps again what failed (:mod:`cfaug.offline.retry_shards`). The engines that start processes share the functions below.
"""

from __future__ import annotations

import logging
import os
import pickle
import socket
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from cfaug.errors import CfaugError, UsageError, one_line
from cfaug.offline.os_errors import is_transient

log = logging.getLogger(__name__)
_logged: list[bool] = []  # whether this process has logged a traceback
Result = TypeVar("Result")

# numpy and torch read these when they make their thread pools, so a process must have them before it imports either
_POOLS = ("OMP", "MKL", "OPENBLAS", "NUMEXPR")
ONE_THREAD = {**{f"{pool}_NUM_THREADS": "1" for pool in _POOLS}, "VECLIB_MAXIMUM_THREADS": "1"}
ADVICE = "run the same command again to continue, with fewer workers if memory ran out; committed shards are kept"


@dataclass(frozen=True)
class Outcome(Generic[Result]):
    """What became of one shard: `result`, or the `error` that kept it from being made.

    `transient`: trying again may help, because a worker died or a storage did not answer; it is false for an error whose
    message says what to correct. `worker` says where the shard was made: ``host:pid``.
    """

    shard: int
    result: Result | None = None
    error: Exception | None = None
    transient: bool = False
    worker: str = ""


class Engine(Protocol):
    """It runs `work` for each shard and yields the outcomes as they come, in any order.

    `shared`: several processes call :meth:`map` with the same list and each makes its part of it, so one caller sees only
    some of the outcomes.
    """

    shared: bool

    def map(self, work: Callable[[int], Result], shards: Sequence[int]) -> Generator[Outcome[Result], None, None]:
        """Closing the iterator early stops the work as soon as the engine can."""
        ...


def this_worker(pid: int | None = None) -> str:
    """``host:pid`` of this process, or of process `pid` of this machine, for :attr:`Outcome.worker`."""
    return f"{socket.gethostname()}:{os.getpid() if pid is None else pid}"


def check_workers(workers: object, least: int, engine: str) -> None:
    """:class:`UsageError` unless `workers` is a whole number of `least` or more."""
    if type(workers) is not int or workers < least:
        raise UsageError(
            f"expected a number of workers of {least} or more for engine {engine}, got {workers!r}; set generate.workers"
        )


def attempt(work: Callable[[int], Result], shard: int) -> Outcome[Result]:
    """``work(shard)`` as an outcome, also when it raises: a CfaugError explains itself, and an OSError may be transient."""
    worker = this_worker()
    try:
        return Outcome(shard, work(shard), worker=worker)
    except CfaugError as error:
        return Outcome(shard, error=error, transient=error.transient, worker=worker)
    except Exception as error:
        if not _logged:  # a bug of ours or of the model: finding it takes a traceback, and one is enough
            _logged.append(True)
            log.exception("shard %d failed in %s", shard, worker)
        # once a graphics card has failed, its process fails from then on; a new attempt has a new process
        passing = is_transient(error) if isinstance(error, OSError) else "CUDA error" in str(error)
        said = one_line(f"{type(error).__name__}: {error}")
        return Outcome(shard, error=CfaugError(said), transient=passing, worker=worker)


@contextmanager
def one_thread() -> Iterator[None]:
    """Processes that are started in here have one thread each, as the manifest's ``threads: 1`` says; our own setting returns."""
    before = {name: os.environ[name] for name in ONE_THREAD if name in os.environ}
    os.environ.update(ONE_THREAD)
    try:
        yield
    finally:
        for name in ONE_THREAD:
            os.environ.pop(name, None)
        os.environ.update(before)


def pack(work: Callable[[int], Any], dumps: Callable[[Any], bytes] = pickle.dumps) -> bytes:
    """`work` pickled, or UsageError. (The default is plain pickle: torch's own would send one file descriptor per tensor.)"""
    try:
        return dumps(work)
    except (pickle.PicklingError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError(
            "expected a model and a data set that can be pickled for worker processes "
            f"({one_line(error)}); use engine=local with workers=0"
        ) from None


class PackedWork:
    """Work that arrived as bytes. It is unpickled at the first shard, so that a failure is an outcome with its reason.

    Called with a shard it returns an :class:`Outcome` that can be pickled: an error or a result that cannot be is replaced by
    a CfaugError that says so. `path` is the parent's ``sys.path``; a spawned process has it already.
    """

    def __init__(self, payload: bytes, path: Sequence[str] = ()) -> None:
        self._payload, self._path = payload, path
        self._work: Callable[[int], Any] | None = None

    def __call__(self, shard: int) -> Outcome[Any]:
        if self._work is None:
            sys.path += [place for place in self._path if place not in sys.path]
            try:
                self._work = pickle.loads(self._payload)  # our own parent wrote it
            except Exception as error:
                told = CfaugError(
                    f"the worker could not load the model and the data set ({one_line(f'{type(error).__name__}: {error}')}): "
                    "make what they are defined in importable there (an installed package, or PYTHONPATH)"
                )
                # a module that is missing here stays missing; a file or memory may be there the next time
                return Outcome(shard, None, told, isinstance(error, (OSError, MemoryError)), this_worker())
            self._payload = b""
        outcome = attempt(self._work, shard)
        try:
            pickle.loads(pickle.dumps(outcome))
        except Exception as error:
            lost = outcome.error if outcome.error is not None else outcome.result
            said = one_line(f"{type(lost).__name__}: {lost} ({error})")
            return Outcome(shard, None, CfaugError(said), outcome.transient, outcome.worker)
        return outcome
