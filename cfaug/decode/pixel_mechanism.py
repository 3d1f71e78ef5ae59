"""What the mechanisms that work on whole pixels have in common: layers, functions and imported images."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import cv2
import numpy as np
import torch

from cfaug.data import AttributeDataset, Schema
from cfaug.data.images import Pixels, to_float
from cfaug.decode.mechanism import FitReport


class PixelMechanism:
    """Schema, parents and arithmetic of a mechanism that maps uint8 images to uint8 images, on the CPU unless it says otherwise."""

    report: FitReport | None = None

    def __init__(self, schema: Schema, parents: Collection[str]) -> None:
        self._schema = schema
        self._parents = tuple(name for name in schema.names if name in parents)

    @property
    def schema(self) -> Schema:
        """The attributes, with statistics once fitted."""
        return self._schema

    @property
    def parents(self) -> tuple[str, ...]:
        """The image's parents, in the schema's order."""
        return self._parents

    @property
    def canvas(self) -> None:
        """All images have one size."""
        return None

    @property
    def device(self) -> str:
        """It computes on the CPU."""
        return "cpu"

    @property
    def dtype(self) -> str:
        """Whole numbers, and the version of OpenCV, whose fillings may differ between versions."""
        return f"uint8, OpenCV {cv2.__version__}"

    def _fit_schema(self, dataset: AttributeDataset) -> None:
        missing = [name for name in self.schema.names if name != self.schema.target]
        self._schema = self.schema.fit(dataset.table, missing)


def as_images(made: Sequence[Pixels], device: torch.device | str) -> torch.Tensor:
    """uint8 images (H, W, C) as one batch of floats (B, C, H, W) in [-1, 1]."""
    return to_float(torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2).contiguous()).to(device)
