"""A criterion of the gate of layers: no composite of an image whose object was not found. It would show another image's background alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from cfaug.data.micro_batch import Sources
from cfaug.decode.layered.mask_sources import EMPTY, FULL


class _Seen(Protocol):
    @property
    def sources(self) -> Sources: ...


@dataclass(frozen=True)
class ObjectFound:
    """Rejects samples whose source has a mask that is (nearly) empty or full; see :class:`cfaug.offline.gate.Criterion`."""

    name = "object found"

    def margins(self, seen: _Seen) -> npt.NDArray[np.float64]:
        """(B,) how far each mask's area is within its limits; a model of layers has refused sources without masks before."""
        assert seen.sources.masks is not None
        areas = (seen.sources.masks > 0.5).float().mean(dim=(1, 2, 3)).numpy().astype(np.float64)
        return np.minimum(areas - EMPTY, FULL - areas)
