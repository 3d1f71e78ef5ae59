"""Categorical mechanism: the largest of K log-probabilities, each with a Gumbel noise of its own.

    v = argmax_k (log p(k | parents) + u_k),   u_k ~ Gumbel(0, 1) independent        then P(v = k) = p(k | parents)

Abduction draws u from its posterior given v, top-down with truncated Gumbels (Maddison, Tarlow and Minka 2014, A* sampling;
Oberst and Sontag 2019, arXiv 1905.05824). The data cannot choose between conventions: this one is counterfactually stable, see
``docs/concepts/noise.md``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cfaug.causal.mechanisms.conditional import one_seed_per_row
from cfaug.causal.mechanisms.discrete import DiscreteMechanism
from cfaug.causal.row_random import Array, Seeds, gumbels


class CategoricalMechanism(DiscreteMechanism):
    """A categorical node (or an ordinal one whose order is not used): noise (B, K) of Gumbels."""

    kind = "categorical"
    convention = (
        "Gumbel-max: each value has its own Gumbel noise and the largest sum wins, so a value stays unless an "
        "intervention raises the probability of a different value relative to it; the data cannot choose this convention"
    )

    @property
    def width(self) -> int:
        """K, the number of categories."""
        return self.size

    def abduct(self, values: pd.Series, parents: pd.DataFrame, seeds: Seeds) -> Array:
        """Gumbel noise (B, K) from its posterior given the values, row i with ``seeds[i]``."""
        codes = self.codes(values)
        seeds = one_seed_per_row(seeds, len(codes), self.name)
        logits = self.log_probabilities(parents)
        rows = np.arange(len(codes))
        draws = gumbels(seeds, logits.shape[1] + 1)
        top = draws[:, -1:]  # the maximum of all: Gumbel(logsumexp(logits) = 0)
        # the others: Gumbel(logit) truncated at the maximum
        perturbed = -np.logaddexp(-top, -(logits + draws[:, :-1]))
        # a rounding tie with the maximum would break predict(abduct(v)) == v
        perturbed = np.minimum(perturbed, top - 1e-9 * np.maximum(1.0, np.abs(top)))
        perturbed[rows, codes] = top[:, 0]
        noise: Array = perturbed - logits
        return noise

    def predict(self, noise: Array, parents: pd.DataFrame) -> npt.NDArray[Any]:
        """argmax(log p + noise) as category texts (B,)."""
        return self.texts(np.argmax(self.log_probabilities(parents) + noise, axis=1))

    def draw(self, seeds: Seeds) -> Array:
        """Fresh Gumbel noise (B, K)."""
        return gumbels(seeds, self.width)
