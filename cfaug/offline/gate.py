"""The gate: a filter between the model and the shard. What it rejects is left out of its shard, and counted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from cfaug.data.micro_batch import Sources
from cfaug.offline.format import Record


class Gate(Protocol):
    """Which of B counterfactual images to keep, asked once per micro-batch. Picklable.

    It must be a function of its arguments alone, because the bytes of a shard depend on it; its `digest` names it in the
    manifest. Null interventions are judged like the other images.
    """

    @property
    def digest(self) -> str: ...

    def __call__(
        self, images: Sequence[npt.NDArray[np.uint8]], records: Sequence[Record], sources: Sources
    ) -> Sequence[bool]:
        """B answers for B `images`, uint8 (H, W, C), with their records and the sources they were made from."""
        ...
