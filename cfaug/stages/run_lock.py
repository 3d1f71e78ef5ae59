"""One command at a time works in a run's directory: a lock that is held from the first moment to the end of the command."""

from __future__ import annotations

import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cfaug.errors import CfaugError, UsageError

log = logging.getLogger(__name__)

LOCK = "run.lock"


@contextmanager
def run_lock(directory: Path, shared: bool = False) -> Iterator[None]:
    """Hold the lock of ``directory``, which is created where it is missing; ``shared``: the ranks of one generation hold it together.

    A directory that cannot be written (a read-only disk) and a file system without locks are not locked.

    Raises:
        UsageError: a different process works there; its number and machine are named.
        CfaugError: the directory cannot be created.
    """
    path = directory / LOCK
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CfaugError(
            f"cannot create the output directory {directory}: {error.strerror}; choose a different --out"
        ) from None
    try:
        handle = path.open("a+")
    except OSError:
        yield
        return
    with handle:
        try:
            fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.seek(0)
            raise UsageError(
                f"{directory} is in use by {handle.read().strip() or 'a different process'}; wait until it is done, or choose a different --out"
            ) from None
        except OSError as error:
            log.warning("%s cannot be locked (%s): do not start a second command there", directory, error.strerror)
        if not shared:
            handle.truncate(0)
            handle.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            handle.flush()
        yield
