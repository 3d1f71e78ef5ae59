"""How good masks look without knowing the truth: their area, how often they touch the border, and how far two sources agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cfaug.data.images import Pixels
from cfaug.decode.layered.mask_sources import EMPTY, FULL, outermost


@dataclass(frozen=True)
class MaskQuality:
    """Figures of N masks.

    Attributes:
        area: (N,) share of the image that is object.
        border: (N,) share of the image's outermost pixels that is object: an object rarely runs out on all sides.
        agreement: (N,) intersection over union with the masks of a second source; None without one.
    """

    area: npt.NDArray[np.float64]
    border: npt.NDArray[np.float64]
    agreement: npt.NDArray[np.float64] | None = None

    def worst(self, count: int) -> list[int]:
        """The masks that look worst: (nearly) empty or full, then by the border, then by disagreement."""
        failed = (self.area < EMPTY) | (self.area > FULL)
        doubt = self.border if self.agreement is None else self.border + 1 - self.agreement
        return [int(i) for i in np.argsort(-(10.0 * failed + doubt), kind="stable")[:count]]

    def summary(self) -> dict[str, Any]:
        """Plain figures for the report."""
        found: dict[str, Any] = {
            "masks": len(self.area),
            "area": [round(float(q), 4) for q in np.quantile(self.area, [0.05, 0.5, 0.95])],
            "empty": int((self.area < EMPTY).sum()),
            "full": int((self.area > FULL).sum()),
            "border": round(float(self.border.mean()), 4),
        }
        if self.agreement is not None:
            found["agreement"] = round(float(self.agreement.mean()), 4)
        return found


def quality(masks: Sequence[Pixels], others: Sequence[Pixels] | None = None) -> MaskQuality:
    """The figures of masks, uint8 (H, W) each; ``others``: those of a second source for the same images."""
    area = np.array([(mask > 127).mean() for mask in masks])
    border = np.array([outermost(mask > 127).mean() for mask in masks])
    if others is None:
        return MaskQuality(area, border)
    return MaskQuality(area, border, np.array([overlap(a, b) for a, b in zip(masks, others, strict=True)]))


def overlap(one: Pixels, other: Pixels) -> float:
    """Intersection over union of two masks; 1 where both are empty."""
    a, b = one > 127, other > 127
    union = int((a | b).sum())
    return 1.0 if union == 0 else int((a & b).sum()) / union
