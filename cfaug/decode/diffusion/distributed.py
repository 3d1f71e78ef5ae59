"""One training by several processes, as ``torchrun --nproc-per-node N`` starts them: who am I, and which rows are mine.

Every process draws the whole batch's randomness from the same generator and keeps its own rows of it, so that N processes
together see exactly the images, times and noise that one would. Without torchrun's variables there is one process and
nothing here does anything.

Not promised: that every process reaches the same file system. Only the process of rank 0 writes; all of them read.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import nn

_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def place() -> tuple[int, int]:
    """(rank, number of processes) that train together; (0, 1) for one process, and before :func:`join`."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def primary() -> bool:
    """Whether this process is the one that writes; true in a run without torchrun. Known before :func:`join`, too."""
    return not _started_together() or int(os.environ["RANK"]) == 0


def several() -> bool:
    """Whether torchrun has started more than this process; known before :func:`join`."""
    return _started_together() and int(os.environ["WORLD_SIZE"]) > 1


def own_device(device: str) -> torch.device:
    """The device of this process: ``cuda`` without a number is one graphics card a process, by torchrun's LOCAL_RANK."""
    chosen = torch.device(device)
    if chosen.type == "cuda" and chosen.index is None and place()[1] > 1:
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return chosen


def join(device: str) -> tuple[int, int]:
    """Meet the other processes (gloo on a CPU, nccl on graphics cards), once; later calls only answer.

    The group stays until the interpreter ends: a second meeting at the same address would find the first one's traces.

    Args:
        device: of the configuration.

    Returns:
        (rank, number of processes).
    """
    if several() and not dist.is_initialized():
        dist.init_process_group("nccl" if torch.device(device).type == "cuda" else "gloo")
        atexit.register(dist.destroy_process_group)
        chosen = own_device(device)
        if chosen.type == "cuda":
            torch.cuda.set_device(chosen)
    return place()


def mean(values: Sequence[float], device: torch.device) -> list[float]:
    """The mean of each number over the processes, the same bits in all of them: what they must decide alike goes here."""
    if place()[1] == 1:
        return list(values)
    # float64 does not exist on mps, where there is one process
    shared = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(shared)
    return [float(value) for value in shared / place()[1]]


def first(value: bool, device: str) -> bool:
    """What the first process says: the others may see its files late, or not at all."""
    rank, world = place()
    return mean([float(value and rank == 0)], own_device(device))[0] * world > 0.5


def total(tensor: torch.Tensor, device: str) -> torch.Tensor:
    """The sum of a CPU tensor over the processes, in place: each fills in its own rows of zeros, and all have every row."""
    if place()[1] > 1:
        shared = tensor.to(own_device(device))
        dist.all_reduce(shared)
        tensor.copy_(shared)
    return tensor


def share(module: nn.Module) -> None:
    """Give every process the weights of the first one."""
    if place()[1] > 1:
        for tensor in module.state_dict().values():
            whole = tensor.contiguous()  # gloo refuses channels_last
            dist.broadcast(whole, 0)
            tensor.copy_(whole)


def normal(shape: Sequence[int], generator: torch.Generator) -> torch.Tensor:
    """Standard normal numbers for the rows of this process: shape (B, ...), rows drawn for all processes in one go."""
    return _own(torch.randn, shape, generator)


def uniform(shape: Sequence[int], generator: torch.Generator) -> torch.Tensor:
    """Uniform numbers in [0, 1) for the rows of this process: shape (B, ...), rows drawn for all processes in one go."""
    return _own(torch.rand, shape, generator)


def _own(draw: Callable[..., torch.Tensor], shape: Sequence[int], generator: torch.Generator) -> torch.Tensor:
    rank, world = place()
    rows = shape[0]
    return draw((rows * world, *shape[1:]), generator=generator)[rank * rows : (rank + 1) * rows]


def _started_together() -> bool:
    return all(name in os.environ for name in _VARIABLES)
