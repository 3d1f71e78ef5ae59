"""What the objectives ask of their tensors: shapes and dtypes that torch would accept and compute something else with.

Whole numbers of every dtype become int64, because torch refuses int8 and int16 as indices and takes uint8 for a mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cfaug.errors import UsageError, described, shown

Integers: TypeAlias = Tensor | npt.NDArray[Any] | Sequence[int] | Sequence[Sequence[int]]


def as_columns(codes: Tensor) -> Tensor:
    """Group codes (B,) or (B, A) as (B, A)."""
    return codes if codes.ndim == 2 else codes[:, None]


def as_tensor(values: Any) -> Tensor:
    """A tensor as it is; an array or a list as a copy on the CPU."""
    return values if isinstance(values, Tensor) else torch.from_numpy(np.array(values))


def as_codes(codes: Integers, size: int | None = None, name: str = "codes") -> Tensor:
    """Group codes as int64 (size,) or (size, A), -1 for no group; UsageError otherwise."""
    return _whole(codes, name, size, (1, 2), -1)


def as_targets(targets: Integers, size: int | None = None, name: str = "targets") -> Tensor:
    """Classes from 0 as int64 (size,); UsageError otherwise."""
    return _whole(targets, name, size, (1,), 0)


def _whole(values: Integers, name: str, size: int | None, ndims: tuple[int, ...], least: int) -> Tensor:
    found = as_tensor(values)
    if found.is_floating_point() or found.is_complex():
        raise UsageError(f"{name}: expected whole numbers, got {described(found)}; convert them with .long()")
    if found.ndim not in ndims or not found.numel() or (size is not None and len(found) != size):
        rows = "N" if size is None else size
        shape = " or ".join(f"({rows}, A)" if ndim == 2 else f"({rows},)" for ndim in ndims)
        raise UsageError(
            f"{name}: expected shape {shape}, not empty, got {tuple(found.shape)}; pass one row per sample"
        )
    found = found.long()
    if (low := int(found.min())) < least:
        raise UsageError(f"{name}: expected numbers of at least {least}, got {low}; number them from 0")
    return found


def as_floats(values: Tensor, name: str, ndim: int = 1) -> Tensor:
    """A float tensor of at least ``ndim`` dimensions that is not empty, of at least 32 bits; UsageError otherwise.

    Sums and squares of float16 and bfloat16 overflow, or lose all but two digits.
    """
    if not isinstance(values, Tensor) or not values.is_floating_point() or values.ndim < ndim or not values.numel():
        raise UsageError(
            f"{name}: expected a float tensor (B{', ...' * (ndim > 1)}) with B > 0, got {described(values)}"
        )
    return values.to(torch.promote_types(values.dtype, torch.float32))


def at_least(name: str, value: float, low: float) -> float:
    """``value``; UsageError unless it is a finite number of at least ``low``."""
    if not low <= value < float("inf"):
        raise UsageError(f"{name}: expected a finite number of at least {low:g}, got {shown(value)}")
    return value
