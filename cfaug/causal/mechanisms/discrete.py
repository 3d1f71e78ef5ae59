"""What the categorical and the ordinal mechanism share: p(v | parents) learned from a table.

They differ in their noise alone: how it is drawn, what value it gives, and which noises give a value.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy.typing as npt
import pandas as pd

from cfaug.causal.mechanisms.conditional import Conditional, one_seed_per_row
from cfaug.causal.row_random import Array, Seeds
from cfaug.data.schema import Schema


class DiscreteMechanism(ABC):
    """A node with K values, in the schema's order; ``conditional`` is p(v | parents)."""

    kind: ClassVar[str]
    convention: ClassVar[str]
    monotone = False  # not strictly: many noises give one value

    def __init__(self, schema: Schema, name: str, parents: Sequence[str] = ()) -> None:
        self.schema, self.name, self.parents = schema, name, tuple(parents)
        self.conditional = Conditional(schema, name, parents)

    @property
    @abstractmethod
    def width(self) -> int:
        """Columns of the noise."""

    @property
    def parameters(self) -> int:
        """Free numbers of p(v | parents); 0 before ``fit``."""
        return self.conditional.parameters

    def fit(self, values: pd.Series, parents: pd.DataFrame, weights: Array | None = None, seed: int = 0) -> Self:
        """Learn p(v | parents) (``conditional``); DataError for an empty table."""
        self.conditional.fit(values, parents, weights, seed)
        return self

    def log_probabilities(self, parents: pd.DataFrame) -> Array:
        """log p(k | parents): (B, K), all finite."""
        return self.conditional.log_probabilities(parents)

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

    def log_prob(self, values: pd.Series, parents: pd.DataFrame) -> Array:
        """log p(v | parents) (B,)."""
        return self.conditional.log_prob(values, parents)

    def state(self) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
        """JSON only."""
        return {"kind": self.kind, "parents": list(self.parents)} | self.conditional.state(), {}

    def restore(self, data: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> Self:
        """The inverse of ``state``."""
        self.conditional.restore(data)
        return self
