"""Engines decide where the work runs. Each is a class with ``map(work, shards)``; see :mod:`cfaug.offline.engines.protocol`.

local      spawned processes of this machine                  pull
torchrun   this process is one rank of a launcher's           shard % world == rank
slurm      the same under srun                                shard % world == rank
submitit   an array of SLURM jobs, requeued when preempted    pull, in groups of shards
ray        actors of a Ray cluster                            pull
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cfaug.config import ENGINES
from cfaug.errors import UsageError, near
from cfaug.offline.engines.local import LocalEngine
from cfaug.offline.engines.protocol import Engine, Outcome, attempt
from cfaug.offline.engines.ranks import LAUNCHERS, launched, local_rank

__all__ = ["ENGINES", "Engine", "LocalEngine", "Outcome", "attempt", "local_rank", "make_engine"]


def make_engine(name: str, workers: int, options: Mapping[str, Any] | None = None) -> Engine:
    """The engine `name` with `workers` processes, actors or jobs at once, and with its own `options`.

    Raises:
        UsageError: the engine or an option does not exist (the message names similar ones), a value is out of range, a
            package is not installed (with the pip line), or no launcher started this process. Nothing was started.
    """
    if name not in ENGINES:
        raise UsageError(f"expected an engine among {', '.join(ENGINES)}, got {name!r}; {near(str(name), ENGINES)}")
    kind: Any = None
    if name == "submitit":
        from cfaug.offline.engines.submitit_engine import SubmititEngine as kind
    elif name == "ray":
        from cfaug.offline.engines.ray_engine import RayEngine as kind
    known = kind.options if kind is not None else ()
    for option in options or {}:
        if option not in known:
            hint = near(option, known) if known else "it takes no options"
            raise UsageError(f"unknown option {option!r} of engine {name}; {hint}")
    if name in LAUNCHERS:
        return launched(name)
    engine: Engine = (kind or LocalEngine)(workers, **(options or {}))
    return engine
