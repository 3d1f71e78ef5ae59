"""Engines: where the work runs. Each is one class with ``map(work, shards)``; see :mod:`cfaug.offline.engines.protocol`."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any

from cfaug.errors import UsageError
from cfaug.offline.engines.local import LocalEngine
from cfaug.offline.engines.protocol import Engine, Outcome, attempt

__all__ = ["Engine", "LocalEngine", "Outcome", "attempt", "make_engine"]

ENGINES: dict[str, Callable[..., Engine]] = {"local": LocalEngine}


def make_engine(name: str, workers: int, options: Mapping[str, Any] | None = None) -> Engine:
    """The engine of that name; :class:`UsageError` with the near names for one that is not there."""
    if name not in ENGINES:
        near = difflib.get_close_matches(name, ENGINES, n=1)
        hint = f": did you mean {near[0]!r}?" if near else ""
        raise UsageError(f"expected an engine among {', '.join(sorted(ENGINES))}, got {name!r}{hint}")
    return ENGINES[name](workers, **dict(options or {}))
