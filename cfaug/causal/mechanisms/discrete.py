"""What the categorical and the ordinal mechanism share: p(v | parents) learned from a table.

They differ in their noise alone: how it is drawn, what value it gives, and which noises give a value.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy.typing as npt
import pandas as pd

from cfaug.causal.mechanisms.conditional import Conditional, one_seed_per_row
from cfaug.causal.row_random import Array, Seeds


class DiscreteMechanism(Conditional, ABC):
    """A node with K values, in the schema's order."""

    kind: ClassVar[str]
    convention: ClassVar[str]
    monotone = False  # not strictly: many noises give one value

    @property
    @abstractmethod
    def width(self) -> int:
        """Columns of the noise."""

    @abstractmethod
    def abduct(self, values: pd.Series, parents: pd.DataFrame, seeds: Seeds) -> Array:
        """Noise (B, width) from its posterior given the values, row i with ``seeds[i]``."""

    @abstractmethod
    def predict(self, noise: Array, parents: pd.DataFrame) -> npt.NDArray[Any]:
        """Category texts (B,) of the noise (B, width)."""

    @abstractmethod
    def draw(self, seeds: Seeds) -> Array:
        """Fresh noise (B, width)."""

    def sample(self, parents: pd.DataFrame, seeds: Seeds) -> npt.NDArray[Any]:
        """Category texts (B,) from fresh noise."""
        return self.predict(self.draw(one_seed_per_row(seeds, len(parents), self.name)), parents)

    def state(self) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
        """JSON only."""
        return {"kind": self.kind} | super().state()[0], {}
