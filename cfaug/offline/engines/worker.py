"""What every engine with processes of its own needs: the work as bytes, the work from bytes, one thread per process."""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from cfaug.errors import CfaugError, UsageError, one_line
from cfaug.offline.engines.protocol import Outcome, attempt, this_worker

# read when numpy's and torch's thread pools are made, so they have to be in a process's environment before it imports them
ONE_THREAD = {
    name: "1"
    for name in (
        "OMP_NUM_THREADS",
        "MKL_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "NUMEXPR_NUM_THREADS",
        "VECLIB_MAXIMUM_THREADS",
    )
}
ADVICE = "committed shards are kept, run the same again to continue, with fewer workers if memory ran out"


@contextmanager
def one_thread() -> Iterator[None]:
    """Processes started in here have one thread each, as the manifest's ``threads: 1`` says; ours comes back after."""
    before = {name: os.environ.get(name) for name in ONE_THREAD}
    os.environ.update(ONE_THREAD)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def pack(work: Callable[[int], Any], dumps: Callable[[Any], bytes] = pickle.dumps) -> bytes:
    """`work` as bytes (plain pickle: torch's own would hand over one file descriptor per tensor); UsageError if it cannot."""
    try:
        return dumps(work)
    except (pickle.PicklingError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError(
            "expected a model and a data set that can be pickled for worker processes "
            f"({one_line(error)}): use engine=local with workers=0"
        ) from None


class PackedWork:
    """Work that came as bytes. It is unpickled once, at the first shard, so that a failure is an outcome with its reason.

    Called with a shard it returns an :class:`Outcome` that survives the way back: errors and results that cannot be
    pickled are replaced by a CfaugError that says so. `path` is the parent's ``sys.path``, for what is not installed but
    beside its script; a spawned process has it without.
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
                said = one_line(f"{type(error).__name__}: {error}")
                # a module that is missing here stays missing; a file or memory may be there the next time
                again = isinstance(error, (OSError, MemoryError))
                told = CfaugError(
                    f"the worker could not load the model and the data set ({said}): make what they are defined in "
                    "importable there (an installed package, or PYTHONPATH)"
                )
                return Outcome(shard, error=told, transient=again, worker=this_worker())
            self._payload = b""
        outcome = attempt(self._work, shard)
        try:
            pickle.loads(pickle.dumps(outcome))
        except Exception as error:
            lost = outcome.error if outcome.error is not None else outcome.result
            said = one_line(f"{type(lost).__name__}: {lost} ({error})")
            return Outcome(shard, error=CfaugError(said), transient=outcome.transient, worker=outcome.worker)
        return outcome
