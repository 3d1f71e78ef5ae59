"""Errors of disks, file systems and object stores in one line each, and whether trying the same again may succeed."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cfaug.errors import CfaugError, ShardError, StorageError, one_line

_FULL = (errno.ENOSPC, errno.EDQUOT)
# What a network, a network file system or a busy store answers. A wrong path or a missing permission is not among them.
_PASSING = frozenset({
    errno.EIO, errno.EREMOTEIO, errno.EBUSY, errno.EAGAIN, errno.EINTR, errno.ETIMEDOUT, errno.ESTALE, errno.EPIPE,
    errno.ECONNRESET, errno.ECONNREFUSED, errno.ECONNABORTED, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN,
})  # fmt: skip


def is_transient(error: OSError) -> bool:
    """Whether trying the same again may help: after a time-out, a lost connection, or a store's answer 500 or 503."""
    return isinstance(error, (TimeoutError, ConnectionError)) or error.errno in _PASSING


@contextmanager
def explained(place: str | Path, name: str, doing: str = "write") -> Iterator[None]:
    """An OSError while `doing` something (write, read, remove) with `name` at `place` becomes what :func:`failure` says."""
    try:
        yield
    except OSError as error:
        raise failure(error, place, name, doing) from None


def failure(error: OSError, place: str | Path, name: str, doing: str = "write") -> StorageError:
    """One line that says what `error` means and what to do: `full` without space left, `transient` as :func:`is_transient`."""
    said = one_line(error.strerror or error)
    full, transient, remote = error.errno in _FULL, is_transient(error), "://" in str(place)
    if full:
        reason = "the disk is full; free some space and run the same command again; committed shards are kept"
    elif transient:
        reason = f"{said}; it may pass, so run the same command again; committed shards are kept"
    elif remote and isinstance(error, FileNotFoundError):
        reason = f"{said}; check that the bucket exists and the URL names it"
    elif remote:
        reason = f"{said}; check the URL, the credentials in the environment and what they permit"
    else:
        reason = f"{said}; check the path and its permissions"
    return StorageError(f"cannot {doing} {name} in {place}: {reason}", transient, full)


def unreadable(error: OSError, where: str, cure: str) -> CfaugError:
    """For a failed read of `where`: a StorageError (`transient`) if it may pass, else a ShardError that ends in `cure`."""
    said = one_line(error.strerror or ("no such file" if isinstance(error, FileNotFoundError) else error))
    if is_transient(error):
        return StorageError(f"{where}: could not be read: {said}; it may pass, so run the same command again", True)
    return ShardError(f"{where}: cannot read it: {said}; {cure}")
