"""One training by several processes, as ``torchrun --nproc-per-node N`` starts them.

Every process draws the whole batch's randomness from the same generator and keeps its own rows, so that N processes
together see exactly the images, times and noise that one process would. Without torchrun's variables there is one process.

Not promised: that every process reaches the same file system. Only the process of rank 0 writes; all of them read.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist

_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def place() -> tuple[int, int]:
    """(rank, number of processes) that train together; (0, 1) for one process, and before :func:`join`."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def primary() -> bool:
    """Whether this process is the one that writes. It is known before :func:`join`, and true without torchrun."""
    return not _started_together() or int(os.environ["RANK"]) == 0


def several() -> bool:
    """Whether torchrun has started more than one process. It is known before :func:`join`."""
    return _started_together() and int(os.environ["WORLD_SIZE"]) > 1


def join(device: str) -> tuple[int, int]:
    """Meet the other processes (gloo on a CPU, nccl on graphics cards); later calls only return (rank, number of processes).

    The device ``cuda`` without a number then means one graphics card per process, by torchrun's LOCAL_RANK. The group stays
    until the interpreter ends: a second meeting at the same address would find the traces of the first.
    """
    if several() and not dist.is_initialized():
        chosen = torch.device(device)
        if chosen.type == "cuda":
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)) if chosen.index is None else chosen.index)
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
        atexit.register(dist.destroy_process_group)
    return place()


def mean(values: Sequence[float], device: str) -> list[float]:
    """The mean of each number over the processes, the same bits in all of them: for what they must decide alike."""
    if place()[1] == 1:
        return list(values)
    shared = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(shared)
    return [float(value) for value in shared / place()[1]]


def first(value: float, device: str) -> float:
    """The first process's value, in every process: the others may see its files late, or not at all. A meeting point, too."""
    rank, world = place()
    return mean([float(value) if rank == 0 else 0.0], device)[0] * world


def own_rows(draw: Callable[..., torch.Tensor], shape: Sequence[int], generator: torch.Generator) -> torch.Tensor:
    """Random numbers for this process's rows, shape (B, ...), float32, drawn for all processes in one go.

    Args:
        draw: torch.randn or torch.rand.
        shape: B and the shape of a row.
        generator: in the same state in every process.
    """
    (rank, world), rows = place(), shape[0]
    whole = draw((rows * world, *shape[1:]), generator=generator, dtype=torch.float32)
    return whole[rank * rows : (rank + 1) * rows]


def _started_together() -> bool:
    return all(name in os.environ for name in _VARIABLES)
