"""bfloat16 where it is faster: on graphics cards, and on processors whose convolutions have it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


def has_bfloat16(device: torch.device | str) -> bool:
    """Whether convolutions of this device run in bfloat16. Without AVX-512 torch computes them many times slower than in float32.

    Never on mps, whose autocast lacks some of the operations.
    """
    kind = torch.device(device).type
    if kind == "cpu":
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return kind != "mps"


def autocast(device: torch.device | str, wanted: bool) -> AbstractContextManager[Any]:
    """Mixed precision in bfloat16 where it is wanted and the device has it; else nothing changes."""
    if wanted and has_bfloat16(device):
        return torch.autocast(torch.device(device).type, torch.bfloat16)
    return nullcontext()
