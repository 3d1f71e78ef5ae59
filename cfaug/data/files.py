"""Files: paths as a user writes them, and writing a file so that nobody ever sees half of it."""

from __future__ import annotations

import errno
import os
import secrets
import socket
from contextlib import suppress
from pathlib import Path

from cfaug.errors import UsageError

PARTIAL = ".partial"  # what the name of a file that is being written ends in


def expand(path: str | os.PathLike[str]) -> Path:
    """A path as a user wrote it, with ``~`` and ``~name`` replaced by the home directory. Every room opens paths by this rule.

    A shell leaves the ``~`` in ``--out=~/run`` and in a recipe as it is. UsageError where there is no such user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UsageError(
            f"expected a path, got {str(path)!r} of a user without a home directory; write it out"
        ) from None


def replace_file(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` completely (``*.partial``, fsync, rename, fsync of the directory) or not at all.

    An OSError (a full disk) passes through, and ``path`` then keeps its old content. Of several writers at once the last one
    wins, with its whole content. Partial files that killed writers of this host left behind are removed.
    """
    partial = path.with_name(partial_name(path.name))
    for old in _abandoned(path):
        old.unlink(missing_ok=True)
    try:
        with partial.open("wb") as handle:
            handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def partial_name(name: str) -> str:
    """A name for `name` while it is being written: no other process on any host uses it, and nobody reads it."""
    return f"{name}.{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(4)}{PARTIAL}"


def sync_directory(directory: Path) -> None:
    """Make what was renamed or removed in `directory` survive a power cut.

    Some network and user-space file systems cannot do this and answer EINVAL; that is ignored.
    """
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(handle)


def is_running(pid: int) -> bool:
    """Whether this host has a process of that number, of any user; one that has ended and waits to be reaped does not count."""
    with suppress(OSError, IndexError):  # where there is a /proc
        if Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] in (b"Z", b"X"):
            return False
    with suppress(PermissionError):
        try:
            os.kill(pid, 0)
        except (ProcessLookupError, OverflowError):
            return False
    return True


def _abandoned(path: Path) -> list[Path]:
    """The partial files of `path` whose writers have ended."""
    start, found = f"{path.name}.{socket.gethostname()}.", []
    with suppress(OSError):  # absent, or not ours to list
        for other in path.parent.iterdir():
            if other.name.startswith(start) and other.name.endswith(PARTIAL):
                pid = other.name.removeprefix(start).partition(".")[0]
                if pid.isdecimal() and not is_running(int(pid)):
                    found.append(other)
    return found
