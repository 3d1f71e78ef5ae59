"""The gate of layers: no composite of an image whose object was not found. It would show another image's background alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from cfaug.data.micro_batch import Sources
from cfaug.decode.layered.mask_sources import EMPTY, FULL


class MaskGate:
    """Leaves out samples whose source has a mask that is (nearly) empty or full; see :class:`cfaug.offline.gate.Gate`."""

    digest = f"masks from {EMPTY} to {FULL}"

    def __call__(
        self, images: Sequence[npt.NDArray[np.uint8]], records: Sequence[object], sources: Sources
    ) -> Sequence[bool]:
        """One answer for each image; a model of layers has refused sources without masks before."""
        assert sources.masks is not None
        areas = (sources.masks > 0.5).float().mean(dim=(1, 2, 3)).tolist()
        return [EMPTY <= area <= FULL for area in areas]
