"""The kinds of failure a user can cause; the command line prints each as one line.

A message reads "expected X, got Y; do Z" on one line. It needs no traceback: the code that raises one of these has already
found the reason.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any


class CfaugError(Exception):
    """A failure that the message explains (exit code 1). `transient`: a second try may succeed (a network, a worker)."""

    exit_code = 1
    transient = False


class UsageError(CfaugError, ValueError):
    """Wrong usage or configuration: nothing was started (exit code 2)."""

    exit_code = 2


class DataError(CfaugError, ValueError):
    """The user's data cannot be used as they are (exit code 1)."""


class StorageError(CfaugError):
    """A disk, a file system or an object store failed (exit code 1); a `full` disk stops a run."""

    def __init__(self, message: str, transient: bool = False, full: bool = False) -> None:
        super().__init__(message)
        self.transient, self.full = transient, full

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.transient, self.full)  # errors travel from worker processes


class ShardError(CfaugError):
    """A shard, manifest, plan or checkpoint is not what it claims to be (exit code 1)."""


def one_line(error: object, most: int = 300) -> str:
    """An error's message (or any text) without line breaks, cut at `most` characters; the error's type where the message is empty."""
    said = " ".join(str(error).split())[:most]
    return said or (type(error).__name__ if isinstance(error, BaseException) else "")


def shown(value: Any, most: int = 60) -> str:
    """A value in an error message: its repr on one line, cut to `most` characters."""
    line = " ".join(repr(value).split())
    return line if len(line) <= most else f"{line[: most - 3]}..."


def described(value: Any) -> str:
    """What a value is, in an error message: its type and, where it has them, its dtype and shape."""
    shape = tuple(value.shape) if hasattr(value, "shape") else ""
    return one_line(f"{type(value).__name__} {getattr(value, 'dtype', '')} {shape}")


def listed(names: Iterable[object], most: int = 3) -> str:
    """The first `most` of some names in an error message: "a, b, c and 4 more"."""
    words = [str(name) for name in names]
    return ", ".join(words[:most]) + (f" and {len(words) - most} more" if len(words) > most else "")


def near(name: str, known: Iterable[str]) -> str:
    """The known names closest to ``name``, or all of them when none is close: the end of an error message."""
    known = [str(k) for k in known]
    close = difflib.get_close_matches(str(name), known, n=3)
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"known: {', '.join(known[:20]) or 'none'}{', ...' if len(known) > 20 else ''}"


_NO_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "cannot allocate memory", "bad_alloc")


def lacks_memory(error: BaseException) -> bool:
    """Whether an error says, in the words of Python, numpy or torch on any device, that the memory does not suffice."""
    words = str(error).lower()
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(w in words for w in _NO_MEMORY))


@contextmanager
def generating(batch_size: int, rows: int) -> Iterator[None]:
    """Around the making of counterfactuals: too little memory becomes a line that says which batch size to try.

    Args:
        batch_size: ``generate.batch_size``.
        rows: how many rows the batch really has.

    Raises:
        CfaugError: the memory does not suffice; other errors pass through.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not lacks_memory(error):
            raise
        half = min(batch_size, rows) // 2
        # the batch size is part of what a run's directory is bound to
        cure = (
            f"set generate.batch_size={half}, with a new --out, or with --overwrite"
            if half
            else "make the images smaller"
        )
        raise CfaugError(
            f"not enough memory to make counterfactuals with generate.batch_size {batch_size}; {cure}"
        ) from None
