"""Sources: one micro-batch of training images on its way into an image mechanism and past the gate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from cfaug.data.images import Pixels, to_uint8

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Sources:
    """B source images with all that a mechanism may know of them.

    Attributes:
        images: float32, shape (B, C, H, W), in [-1, 1].
        table: B rows of factual attributes, canonical.
        keys: B source keys.
        seeds: B seeds of the plan; a stochastic mechanism draws from these alone.
        masks: float32, shape (B, 1, H, W), in [0, 1], 1 on the object; None where the data set has none.
    """

    images: torch.Tensor
    table: pd.DataFrame
    keys: Sequence[str]
    seeds: Sequence[int]
    masks: torch.Tensor | None = None

    @property
    def pixels(self) -> Pixels:
        """The images as they are stored: uint8 (B, H, W, C)."""
        found: Pixels = to_uint8(self.images).permute(0, 2, 3, 1).contiguous().cpu().numpy()
        return found

    @property
    def mask_pixels(self) -> Pixels | None:
        """The masks as they are stored: uint8 (B, H, W), 255 on the object."""
        return None if self.masks is None else (self.masks[:, 0] * 255).round().byte().cpu().numpy()

    def __len__(self) -> int:
        return len(self.table)
