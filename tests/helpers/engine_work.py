"""Work for engines, in a module that worker processes can import, and the law that every engine has to keep."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cfaug.errors import CfaugError, DataError, StorageError, UsageError
from cfaug.offline.engines import Engine, Outcome

IN_PROCESS = ("fine", "data", "usage", "refused", "busy", "passing", "bug", "picky")
KINDS = (*IN_PROCESS, "kill", "exit", "segfault")
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
TRANSIENT = {"busy", "passing", "kill", "exit", "segfault"}


class Picky(CfaugError):
    """An error that cannot come back from a pickle."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"{message} {code}")


@dataclass(frozen=True)
class Work:
    """``work(shard)`` does what `kinds` has for the shard; each call leaves a file ``<shard>-<pid>`` in `mark`."""

    kinds: Mapping[int, str] = field(default_factory=dict)
    mark: str | None = None
    pause: float = 0.0

    def __call__(self, shard: int) -> Any:
        if self.mark is not None:
            Path(self.mark, f"{shard}-{os.getpid()}").touch()
        time.sleep(self.pause)
        kind = self.kinds.get(shard, "fine")
        if kind == "data":
            raise DataError(f"shard {shard} is bad")
        if kind == "usage":
            raise UsageError(f"shard {shard} is misused")
        if kind == "refused":
            raise StorageError(f"shard {shard} is refused", full=True)
        if kind == "busy":
            raise StorageError(f"shard {shard} finds the store busy", transient=True)
        if kind == "passing":
            raise OSError(5, f"shard {shard} was not read")
        if kind == "bug":
            raise KeyError(shard)
        if kind == "picky":
            raise Picky(shard, "shard")
        if kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(60)
        if kind == "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
            time.sleep(60)
        if kind == "exit":
            os._exit(7)
        return shard * shard


@dataclass(frozen=True)
class OneThread:
    """Returns what a worker sees of threads: the variable, and torch's own count."""

    def __call__(self, shard: int) -> tuple[str | None, int]:
        import torch

        return os.environ.get("OMP_NUM_THREADS"), torch.get_num_threads()


@dataclass(frozen=True)
class OneSlow:
    """The process that gets shard 0 keeps it until `others` shards were done elsewhere.

    Returns the process number and the values of the variables of :data:`THREADS` there.
    """

    place: str
    others: int

    def __call__(self, shard: int) -> tuple[int, set[str | None]]:
        deadline = time.monotonic() + 30
        while shard == 0 and len(list(Path(self.place).iterdir())) < self.others:
            if time.monotonic() > deadline:
                raise DataError("nobody did the others' shards")
            time.sleep(0.02)
        Path(self.place, str(shard)).touch()
        return os.getpid(), {os.environ.get(name) for name in THREADS}


@dataclass(frozen=True)
class Unloadable:
    """Pickles here, and cannot be unpickled in a worker."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return _refuse, ("tensors of another age",)

    def __call__(self, shard: int) -> None: ...


def _refuse(why: str) -> None:
    raise ImportError(why)


@dataclass(frozen=True)
class SlowOdd(Work):
    """A minute for an odd shard."""

    def __call__(self, shard: int) -> Any:
        done = super().__call__(shard)
        time.sleep(60 * (shard % 2))
        return done


@dataclass(frozen=True)
class OneStays(Work):
    """Once there is a file ``now`` in `place`, the next call makes a file ``stays`` there and takes a minute; one call only."""

    place: str = ""

    def __call__(self, shard: int) -> Any:
        if Path(self.place, "now").exists():
            with suppress(FileExistsError):
                Path(self.place, "stays").open("x").close()
                time.sleep(60)
        return super().__call__(shard)


class Unpicklable:
    """A result that pickles in no process."""

    def __call__(self, shard: int) -> Any:
        return lambda: shard


def killed_at_the_start(*_: Any) -> None:
    """In place of what prepares a worker."""
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def killed_at_the_first_start(*given: Any) -> None:
    try:
        Path(os.environ["CFAUG_TEST_PLACE"], "killed").open("x").close()
    except FileExistsError:
        from cfaug.offline.engines.local import prepare

        prepare(*given)
    else:
        killed_at_the_start()


def check_law(engine: Engine, kinds: Mapping[int, str], given: Sequence[int], expected: Sequence[int]) -> None:
    """Each expected shard has one outcome: the right result, or the right error in the right class, on one line."""
    outcomes: list[Outcome[Any]] = list(engine.map(Work(dict(kinds)), given))
    assert Counter(outcome.shard for outcome in outcomes) == Counter(expected)
    for outcome in outcomes:
        kind = kinds.get(outcome.shard, "fine")
        assert outcome.transient is (kind in TRANSIENT), outcome
        if kind == "fine":
            assert (outcome.result, outcome.error) == (outcome.shard**2, None), outcome
            continue
        assert outcome.result is None
        assert isinstance(outcome.error, CfaugError)
        assert "\n" not in str(outcome.error)
        assert str(outcome.shard) in str(outcome.error)
        wanted: dict[str, type[Exception]] = {
            "data": DataError,
            "usage": UsageError,
            "refused": StorageError,
            "busy": StorageError,
        }
        assert type(outcome.error) is wanted.get(kind, type(outcome.error))
        assert getattr(outcome.error, "full", False) is (kind == "refused")
        if kind in ("kill", "exit", "segfault"):
            assert "died" in str(outcome.error) or "ended without" in str(outcome.error)


class DyingHolder:
    """In place of Ray's actor."""

    def __init__(self, *_: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def ready(self) -> None: ...
