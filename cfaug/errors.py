"""The two kinds of failure a user can cause; the command line prints each as one line.

A message says what was expected, what came, and what to do next. It never carries a traceback:
whoever raises one of these has already found the reason.
"""

from __future__ import annotations


class CfaugError(Exception):
    """A failure that the message explains (exit code 1)."""

    exit_code = 1


class UsageError(CfaugError, ValueError):
    """Wrong usage or configuration: nothing was started (exit code 2)."""

    exit_code = 2


class DataError(CfaugError, ValueError):
    """The user's data cannot be used as they are (exit code 1)."""


class ShardError(CfaugError):
    """A shard, manifest, plan or checkpoint is not what it claims to be (exit code 1)."""
