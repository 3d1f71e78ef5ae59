"""What the objectives ask of their arguments, each in one line."""

from __future__ import annotations

import torch
from torch import Tensor

from cfaug.errors import UsageError


def as_columns(codes: Tensor) -> Tensor:
    """Group codes (B,) or (B, A) as (B, A)."""
    return codes if codes.ndim == 2 else codes[:, None]


def check_codes(codes: Tensor, size: int, name: str = "codes") -> None:
    """UsageError unless integer, (size,) or (size, A), and at least -1."""
    if codes.ndim not in (1, 2) or len(codes) != size:
        raise UsageError(
            f"{name}: expected shape ({size},) or ({size}, A), came {tuple(codes.shape)}; one row a sample"
        )
    if codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool:
        raise UsageError(f"{name}: expected integer codes, came {codes.dtype}; convert them with .long()")
    if codes.numel() and int(codes.min()) < -1:
        raise UsageError(f"{name}: expected codes from 0, or -1 for none, came {int(codes.min())}")


def check_targets(targets: Tensor, size: int, classes: int | None = None) -> None:
    """UsageError unless integer, (size,), from 0 and below ``classes``."""
    if tuple(targets.shape) != (size,):
        raise UsageError(f"targets: expected shape ({size},), came {tuple(targets.shape)}; one class a sample")
    if targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
        raise UsageError(f"targets: expected integer classes, came {targets.dtype}; convert them with .long()")
    if size and (int(targets.min()) < 0 or (classes is not None and int(targets.max()) >= classes)):
        wrong = int(targets.min()) if int(targets.min()) < 0 else int(targets.max())
        upper = "up" if classes is None else f"to {classes - 1}"
        raise UsageError(f"targets: expected classes from 0 {upper}, came {wrong}; check the class codes")
