"""The marginal distribution of every attribute among the rows an SCM was fitted on.

``resample()`` and ``uniform()`` draw from it, and it tells whether do(x=v) leaves the values that occur.
Discrete: the (weighted) share of every value. Continuous: 1 025 (weighted) quantiles, between which a draw is linear.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cfaug.causal.row_random import Array
from cfaug.data.attribute import Attribute
from cfaug.data.schema import Schema

QUANTILES = 1025


@dataclass(frozen=True)
class Marginal:
    """The marginal of one attribute: ``numbers`` are shares of its values (K,), or its quantiles (1 025,) if continuous."""

    attribute: Attribute
    numbers: Array

    @classmethod
    def fit(cls, schema: Schema, name: str, values: pd.Series, weights: Array | None = None) -> Marginal:
        """From a canonical column without missing values, at least one row long."""
        w = np.ones(len(values)) if weights is None else weights
        if schema[name].kind != "continuous":
            counts = np.bincount(schema.index(name, values), w, minlength=len(schema[name].categories))
            return cls(schema[name], counts / counts.sum())
        numbers = values.to_numpy(dtype=np.float64)
        order = np.argsort(numbers, kind="stable")
        mass = np.cumsum(w[order])
        # the middle of each row's mass, stretched to [0, 1]: for equal weights numpy's default quantile
        place = (mass - w[order] / 2) / mass[-1]
        place = (place - place[0]) / max(place[-1] - place[0], 1e-300)
        return cls(schema[name], np.interp(np.linspace(0, 1, QUANTILES), place, numbers[order]))

    @property
    def seen(self) -> tuple[str, ...]:
        """The values of a discrete attribute that occur."""
        return tuple(value for value, share in zip(self.attribute.values or (), self.numbers) if share > 0)

    @property
    def range(self) -> tuple[float, float]:
        """(smallest, largest) number that occurs of a continuous attribute."""
        return float(self.numbers[0]), float(self.numbers[-1])

    @property
    def constant(self) -> bool:
        """True when there is one value only."""
        if self.attribute.kind == "continuous":
            return self.range[0] == self.range[1]
        return len(self.seen) == 1

    def resampled(self, u: Array) -> npt.NDArray[Any]:
        """Values (B,) at the levels ``u`` (B,) in (0, 1) of the distribution."""
        if self.attribute.kind == "continuous":
            drawn: Array = np.interp(u, np.linspace(0, 1, QUANTILES), self.numbers)
            return drawn
        edges = np.cumsum(self.numbers)[:-1]
        found: npt.NDArray[Any] = self._texts()[np.searchsorted(edges, u * self.numbers.sum(), side="right")]
        return found

    def uniform(self, u: Array) -> npt.NDArray[Any]:
        """Values (B,) at the levels ``u`` (B,) of the uniform distribution over what occurs."""
        if self.attribute.kind == "continuous":
            low, high = self.range
            between: Array = low + u * (high - low)
            return between
        seen = np.flatnonzero(self.numbers > 0)
        return self._texts()[seen[(u * len(seen)).astype(np.int64)]]

    def _texts(self) -> npt.NDArray[Any]:
        return np.array(self.attribute.categories, dtype=object)

    def strange(self, value: str | float | None) -> str | None:
        """Why do(x=value) leaves what was seen, in words; None when it does not."""
        if value is None:
            return None
        if self.attribute.kind != "continuous":
            return None if value in self.seen else f"no row has it (rows have {', '.join(self.seen[:10])})"
        low, high = self.range
        return None if low <= float(value) <= high else f"the rows go from {low:g} to {high:g}"
