"""Mechanisms: how one node follows from its parents and its exogenous noise, and back.

    v = f(parents, u)          abduct: u given (v, parents)          predict: v given (u, parents)
    predict(abduct(v, parents), parents) == v                        the law every mechanism keeps

Categorical and ordinal nodes use the Gumbel-max convention: v = argmax_k (log p(k | parents) + u_k) with u_k ~
Gumbel(0, 1), and abduction draws u from its posterior given v (top-down, truncated Gumbels: Maddison et al. 2014,
A* sampling; Oberst and Sontag 2019, arXiv 1905.05824). Many noises give the same category and the data cannot choose
between conventions: this one is counterfactually stable, which is an assumption and not a finding.

``ContinuousMechanism`` and ``ImageMechanism`` are declared beside it; the flow itself lives in ``flows``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd

from cfaug.causal.draws import Array, Seeds, gumbels
from cfaug.data.attributes import Schema
from cfaug.errors import DataError

if TYPE_CHECKING:
    import torch


class Mechanism(Protocol):
    """One attribute given its parents. B rows; ``values`` is a canonical column, ``parents`` a canonical table."""

    name: str
    parents: tuple[str, ...]

    def fit(self, values: pd.Series, parents: pd.DataFrame, weights: Array | None = None, seed: int = 0) -> Any:
        """Learn f from rows, optionally weighted (B,); returns self."""
        ...

    def abduct(self, values: pd.Series, parents: pd.DataFrame, seeds: Seeds) -> Array:
        """Noise (B, K) that gives ``values``; random only where many noises do, and then by the row's seed."""
        ...

    def predict(self, noise: Array, parents: pd.DataFrame) -> npt.NDArray[Any]:
        """Values (B,) from noise (B, K)."""
        ...

    def sample(self, parents: pd.DataFrame, seeds: Seeds) -> npt.NDArray[Any]:
        """Values (B,) from fresh noise: an interventional or observational sample, not a counterfactual."""
        ...

    def log_prob(self, values: pd.Series, parents: pd.DataFrame) -> Array:
        """log p(value | parents) (B,), in the attribute's own unit."""
        ...

    def state(self) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
        """(JSON, arrays) from which ``restore`` rebuilds the fitted mechanism exactly."""
        ...

    def restore(self, data: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> Any:
        """The inverse of ``state``; returns self."""
        ...


class ImageMechanism(Protocol):
    """The last node: image = g(parents, u). Images are float (B, C, H, W) in [-1, 1], attributes B table rows."""

    schema: Schema
    parents: tuple[str, ...]

    def abduct(self, image: torch.Tensor, attributes: pd.DataFrame) -> Any:
        """The image's noise, inferred jointly from pixels and factual attributes."""
        ...

    def predict(self, noise: Any, attributes: pd.DataFrame) -> torch.Tensor:
        """The image of this noise under these attributes: float (B, C, H, W) in [-1, 1]."""
        ...

    @property
    def digest(self) -> str:
        """sha256 (hex) of everything the prediction depends on."""
        ...


class CategoricalMechanism:
    """A categorical or ordinal node: p(v | parents), noise (B, K) of Gumbels.

    Counts with add-one smoothing when every parent is categorical or ordinal and every combination of their values
    occurs; otherwise multinomial logistic regression on the encoded parents (scikit-learn, L2), mixed with the
    uniform distribution at the weight that add-one smoothing would give. An ordinal node's order is not used.
    """

    def __init__(self, schema: Schema, name: str, parents: Sequence[str] = ()) -> None:
        self.schema, self.name, self.parents = schema, name, tuple(parents)
        self._counts: Array | None = None  # (cells, K), smoothed
        self._weights: Array = np.zeros((0, 0))  # (K, D)
        self._bias: Array = np.zeros(0)  # (K,); -inf for a value never seen
        self._uniform = 0.0

    @property
    def _sizes(self) -> tuple[int, ...]:
        return tuple(len(self.schema[p].categories) for p in self.parents)

    def _cells(self, parents: pd.DataFrame) -> npt.NDArray[np.int64]:
        cell = np.zeros(len(parents), dtype=np.int64)
        for name, size in zip(self.parents, self._sizes):
            cell = cell * size + self.schema.index(name, parents[name])
        return cell

    def fit(
        self, values: pd.Series, parents: pd.DataFrame, weights: Array | None = None, seed: int = 0
    ) -> CategoricalMechanism:
        """Learn p(v | parents); nothing here is random, ``seed`` is for the protocol."""
        k = len(self.schema[self.name].categories)
        codes = self.schema.index(self.name, values)
        if not len(codes):
            raise DataError(f"cannot fit {self.name!r} to an empty table; give at least one row")
        w = np.ones(len(codes)) if weights is None else np.asarray(weights, dtype=np.float64)
        self._uniform = float(k / (w.sum() + k))
        if all(self.schema[p].kind != "continuous" for p in self.parents):
            cells = int(np.prod(self._sizes, dtype=np.int64))
            # more combinations than rows cannot all occur: do not even count them
            if cells <= len(codes) and len(np.unique(cell := self._cells(parents))) == cells:
                counts = np.zeros((cells, k))
                np.add.at(counts, (cell, codes), w)
                self._counts = counts + 1.0
                return self
        self._counts = None
        self._logistic(self.schema.encode(parents, self.parents).astype(np.float64), codes, w, k)
        return self

    def _logistic(self, x: Array, codes: npt.NDArray[np.int64], w: Array, k: int) -> None:
        from sklearn.linear_model import LogisticRegression

        seen = np.unique(codes)
        self._weights, self._bias = np.zeros((k, x.shape[1])), np.full(k, -np.inf)
        if len(seen) == 1:
            self._bias[seen] = 0.0
            return
        model = LogisticRegression(max_iter=1000).fit(x, codes, sample_weight=w)
        if len(seen) == 2:  # scikit-learn keeps one row for two classes: the logit of the second
            self._weights[seen[1]], self._bias[seen] = model.coef_[0], [0.0, model.intercept_[0]]
        else:
            self._weights[seen], self._bias[seen] = model.coef_, model.intercept_

    def log_probabilities(self, parents: pd.DataFrame) -> Array:
        """log p(k | parents): (B, K), all finite."""
        if self._counts is not None:
            p = self._counts[self._cells(parents)]
            logs: Array = np.log(p) - np.log(p.sum(axis=1, keepdims=True))
            return logs
        z = self.schema.encode(parents, self.parents).astype(np.float64) @ self._weights.T + self._bias
        p = np.exp(z - z.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        out: Array = np.log((1 - self._uniform) * p + self._uniform / p.shape[1])
        return out

    def abduct(self, values: pd.Series, parents: pd.DataFrame, seeds: Seeds) -> Array:
        """Gumbel noise (B, K) from its posterior given the values, row i with ``seeds[i]``."""
        codes = self.schema.index(self.name, values)
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
        best = np.argmax(self.log_probabilities(parents) + noise, axis=1)
        texts: npt.NDArray[Any] = np.array(self.schema[self.name].categories, dtype=object)[best]
        return texts

    def sample(self, parents: pd.DataFrame, seeds: Seeds) -> npt.NDArray[Any]:
        """Category texts (B,) from fresh Gumbel noise."""
        return self.predict(gumbels(seeds, len(self.schema[self.name].categories)), parents)

    def log_prob(self, values: pd.Series, parents: pd.DataFrame) -> Array:
        """log p(v | parents) (B,)."""
        codes = self.schema.index(self.name, values)
        out: Array = self.log_probabilities(parents)[np.arange(len(codes)), codes]
        return out

    def state(self) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
        """JSON only; the numbers round-trip exactly (None stands for -inf)."""
        bias = [None if np.isinf(b) else float(b) for b in self._bias]
        counts = None if self._counts is None else self._counts.tolist()
        data = {"counts": counts, "weights": self._weights.tolist(), "bias": bias, "uniform": self._uniform}
        return {"kind": "categorical", "parents": list(self.parents)} | data, {}

    def restore(self, data: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> CategoricalMechanism:
        """The inverse of ``state``."""
        self._counts = None if data["counts"] is None else np.array(data["counts"], dtype=np.float64)
        self._weights = np.array(data["weights"], dtype=np.float64).reshape(
            len(data["bias"]), -1 if data["bias"] else 0
        )
        self._bias = np.array([-np.inf if b is None else b for b in data["bias"]], dtype=np.float64)
        self._uniform = float(data["uniform"])
        return self
