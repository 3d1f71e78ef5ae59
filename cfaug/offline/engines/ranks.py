"""The engines of a launcher: torchrun or srun started this process as one of several ranks, each does its own shards.

    rank r of w does the shards with  shard % w == r

The partition depends on the shard's number only, so it is the same whatever each rank sees as pending, and no process
group, network or message is needed. It is a push: a rank on a slow machine keeps its part to the end.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Sequence
from typing import TypeVar

from cfaug.errors import UsageError
from cfaug.offline.engines.protocol import Outcome, attempt

Result = TypeVar("Result")


class RankEngine:
    """Rank `rank` of `world`, in this process; `workers` of make_engine is not used: the launcher said how many."""

    shared = True

    def __init__(self, rank: int, world: int) -> None:
        self.rank, self.world = rank, world

    def map(self, work: Callable[[int], Result], shards: Sequence[int]) -> Generator[Outcome[Result], None, None]:
        """Yield an outcome for each of this rank's shards; the others' are theirs to yield."""
        for shard in shards:
            if shard % self.world == self.rank:
                yield attempt(work, shard)


def torchrun() -> RankEngine:
    """The rank that ``RANK`` and ``WORLD_SIZE`` say; UsageError with the command to start it by."""
    how = "torchrun --nproc-per-node N -m cfaug generate RECIPE.yaml --out DIR --generate.engine=torchrun"
    return _rank("torchrun", "RANK", "WORLD_SIZE", how)


def slurm() -> RankEngine:
    """The rank that ``SLURM_PROCID`` and ``SLURM_NTASKS`` say; UsageError with the command to start it by."""
    how = "srun -n N cfaug generate RECIPE.yaml --out DIR --generate.engine=slurm"
    engine = _rank("slurm", "SLURM_PROCID", "SLURM_NTASKS", how)
    # a batch script has both variables and is one process: it would do its part, exit 0, and leave the rest undone
    if engine.world > 1 and "SLURM_JOB_ID" in os.environ and "SLURM_STEP_ID" not in os.environ:
        raise UsageError(
            f"expected one process for each of the {engine.world} tasks, got the batch script itself, which is one: "
            f"start it in the script with `{how}`"
        )
    return engine


def local_rank() -> int:
    """Which of the ranks on this machine this process is, from 0: ``LOCAL_RANK`` (torchrun), else ``SLURM_LOCALID``.

    A rank takes GPU ``local_rank() % torch.cuda.device_count()``. The remainder matters: with one GPU bound to each task
    (``srun --gpus-per-task=1``) every rank sees a single device, number 0. UsageError for a value that is not a number.
    """
    for name in ("LOCAL_RANK", "SLURM_LOCALID"):
        if name in os.environ:
            return _number(name, "torchrun and srun set it themselves: do not set it by hand")
    return 0


def _rank(engine: str, rank_name: str, world_name: str, how: str) -> RankEngine:
    absent = [name for name in (rank_name, world_name) if name not in os.environ]
    if absent:
        raise UsageError(
            f"engine {engine} expects the environment variables {rank_name} and {world_name}, "
            f"got no {' and no '.join(absent)}: start it with `{how}`"
        )
    rank, world = _number(rank_name, f"start it with `{how}`"), _number(world_name, f"start it with `{how}`")
    if rank >= world:
        raise UsageError(f"expected {rank_name} below {world_name}, got {rank} of {world}: start it with `{how}`")
    return RankEngine(rank, world)


def _number(name: str, cure: str) -> int:
    said = os.environ[name]
    if not (said.isascii() and said.isdigit()):
        raise UsageError(f"expected a whole number of 0 or more in {name}, got {said!r}: {cure}")
    return int(said)
