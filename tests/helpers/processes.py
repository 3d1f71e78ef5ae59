"""Processes that tests start, watch and kill."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def alive(pid: int) -> bool:
    """A zombie is not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def marks(place: Path) -> list[tuple[int, int]]:
    """The two numbers of each file ``<number>-<number>`` in `place`, in the order of time; engine_work's: (shard, pid)."""
    paths = sorted(place.iterdir(), key=lambda path: path.stat().st_mtime_ns)
    return [(int(first), int(second)) for first, second in (path.name.split("-")[:2] for path in paths)]


def wait_until(true: Callable[[], object], seconds: float = 45.0) -> bool:
    """Whether it came true within `seconds`."""
    deadline = time.monotonic() + seconds
    while not (found := true()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return bool(found)


def killed_at(step: int, calls: Sequence[str], work: Callable[[], Any], torn: bool = False) -> int:
    """Do `work` in a forked child that kills itself at the `step`-th of these `calls` of :mod:`os`; its wait status.

    `torn`: the write that it dies at has written half. The child ends with 0 when it came to the end of the work before,
    with 1 when the work raised.
    """
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    left, write = [step], os.write

    def countdown(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any) -> Any:
            if left[0] == 0:
                if torn and call is write:
                    write(args[0], args[1][: len(args[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
            return call(*args)

        return wrapped

    try:
        for name in calls:
            setattr(os, name, countdown(getattr(os, name)))
        work()
        os._exit(0)
    finally:
        os._exit(1)
