"""Files that stay open for random reads: opening one costs more than reading a small image from it.

Reads name their offset (``pread``), so no position is shared: threads, and processes forked from this one, read through the
same descriptors. A copy that was pickled opens its own. A file that is removed or replaced stays readable, as it was, for
whoever has it open.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from cfaug.offline.reading.latest import Latest

MOST = 128  # descriptors; a process may have 1024 by default


class _Open:
    """One descriptor; closed when nobody reads through it any more, not while another thread does."""

    __slots__ = ("fd",)

    def __init__(self, path: Path) -> None:
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "fd"):
            os.close(self.fd)


class Descriptors:
    """The files of `directory`, by name; at most `MOST` of them open, the latest used."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._files: Latest[str, _Open] = Latest(MOST, lambda name: _Open(directory / name))

    def __len__(self) -> int:
        return len(self._files)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.directory,)

    def read(self, name: str, offset: int, size: int) -> bytes:
        """`size` bytes from `offset`, fewer where the file ends before; OSError where it cannot be opened or read."""
        held = self._files.get(name)  # a name of its own, so that nobody closes it during the read
        return os.pread(held.fd, size, offset)
