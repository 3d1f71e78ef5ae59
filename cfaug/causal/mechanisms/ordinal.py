"""Ordinal mechanism: the level at which the cumulative distribution reaches one uniform noise.

    v = the first level k with u <= F_k(parents),   F_k = p(0) + ... + p(k),   u ~ U(0, 1)

Abduction draws u uniformly from (F_{k-1}, F_k). Where an intervention moves the whole distribution up (every F_k sinks),
no row's level falls: the quantile coupling (Thorisson 2000, Coupling, stationarity, and regeneration, chapter 1). The data
cannot choose between couplings.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cfaug.causal.mechanisms.conditional import one_seed_per_row
from cfaug.causal.mechanisms.discrete import DiscreteMechanism
from cfaug.causal.row_random import Array, Seeds, uniforms

MARGIN = 1e-12  # from a cell's edges: far above the rounding of a cumulative sum, far below the narrowest cell (1e-9)


class OrdinalMechanism(DiscreteMechanism):
    """An ordinal node: noise (B, 1), uniform on (0, 1); the level rises with it, in steps."""

    kind = "ordinal"
    width = 1
    convention = (
        "monotone quantile coupling: a row keeps its rank, so an intervention that moves the distribution up never "
        "lowers the level; its place within the level is drawn, and the data cannot choose this convention"
    )

    def _edges(self, parents: pd.DataFrame) -> Array:
        """F_{-1} = 0, F_0, ..., F_{K-1} = 1: (B, K + 1), increasing by at least 1e-9 per step."""
        p = np.exp(self.log_probabilities(parents))
        edges = np.zeros((len(p), p.shape[1] + 1))
        np.cumsum(p, axis=1, out=edges[:, 1:])
        edges[:, -1] = 1.0  # the sum itself may miss it by a rounding
        return edges

    def abduct(self, values: pd.Series, parents: pd.DataFrame, seeds: Seeds) -> Array:
        """Noise (B, 1) drawn from the part of (0, 1) that gives the values, row i with ``seeds[i]``."""
        codes = self.codes(values)
        edges, rows = self._edges(parents), np.arange(len(codes))
        low, high = edges[rows, codes], edges[rows, codes + 1]
        u = low + (high - low) * uniforms(one_seed_per_row(seeds, len(codes), self.name))[:, 0]
        noise: Array = np.clip(u, low + MARGIN, high - MARGIN)[:, None]
        return noise

    def predict(self, noise: Array, parents: pd.DataFrame) -> npt.NDArray[Any]:
        """The levels (B,), as texts, whose part of (0, 1) the noise (B, 1) lies in."""
        inner = self._edges(parents)[:, 1:-1]
        return self.texts(np.sum(noise > inner, axis=1))

    def draw(self, seeds: Seeds) -> Array:
        """Fresh uniform noise (B, 1)."""
        return uniforms(seeds)
