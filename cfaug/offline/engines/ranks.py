"""The engines torchrun and slurm: a launcher has started this process as one of several ranks, and each makes its own shards.

    rank r of w makes the shards with  shard % w == r

The partition depends on the shard's number only. It is therefore the same whichever shards a rank sees as missing, and needs
no process group and no network. A rank on a slow machine keeps its part to the end.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Sequence
from typing import TypeVar

from cfaug.errors import UsageError
from cfaug.offline.engines.protocol import Outcome, attempt

Result = TypeVar("Result")
LAUNCHERS = {
    "torchrun": ("RANK", "WORLD_SIZE", "torchrun --nproc-per-node N -m cfaug"),
    "slurm": ("SLURM_PROCID", "SLURM_NTASKS", "srun -n N cfaug"),
}
"""Engine -> the variables that hold the rank and the number of ranks, and the command that starts the ranks."""


class RankEngine:
    """Rank `rank` of `world`, in this process. The launcher decides how many there are, not `workers` of make_engine."""

    shared = True

    def __init__(self, rank: int, world: int) -> None:
        self.rank, self.world = rank, world

    def map(self, work: Callable[[int], Result], shards: Sequence[int]) -> Generator[Outcome[Result], None, None]:
        """Yield an outcome for each of this rank's shards."""
        for shard in shards:
            if shard % self.world == self.rank:
                yield attempt(work, shard)


def launched(engine: str) -> RankEngine:
    """The rank that the launcher's variables state; UsageError with the command to start it by where they are absent."""
    rank_name, world_name, command = LAUNCHERS[engine]
    cure = f"start it with `{command} generate RECIPE.yaml --out DIR --generate.engine={engine}`"
    absent = [name for name in (rank_name, world_name) if name not in os.environ]
    if absent:
        raise UsageError(
            f"expected the environment variables {rank_name} and {world_name} for engine {engine}, "
            f"got no {' and no '.join(absent)}; {cure}"
        )
    rank, world = _number(rank_name, cure), _number(world_name, cure)
    if rank >= world:
        raise UsageError(f"expected {rank_name} below {world_name}, got {rank} of {world}; {cure}")
    # a batch script has both variables and is one process: it would make its part, exit with 0 and leave the rest
    if engine == "slurm" and world > 1 and "SLURM_JOB_ID" in os.environ and "SLURM_STEP_ID" not in os.environ:
        raise UsageError(
            f"expected one process for each of the {world} tasks, got the batch script itself, which is one; {cure}"
        )
    return RankEngine(rank, world)


def local_rank() -> int:
    """The number of this process among the ranks on this machine, from 0: ``LOCAL_RANK`` (torchrun), else ``SLURM_LOCALID``.

    A rank takes GPU ``local_rank() % torch.cuda.device_count()``. The remainder matters: with one GPU bound to each task
    (``srun --gpus-per-task=1``) every rank sees a single device, number 0. UsageError for a value that is not a number.
    """
    for name in ("LOCAL_RANK", "SLURM_LOCALID"):
        if name in os.environ:
            return _number(name, "do not set it by hand, torchrun and srun do")
    return 0


def _number(name: str, cure: str) -> int:
    said = os.environ[name]
    if not (said.isascii() and said.isdigit()):
        raise UsageError(f"expected a whole number of 0 or more in {name}, got {said!r}; {cure}")
    return int(said)
