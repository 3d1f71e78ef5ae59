"""Additive noise: a continuous attribute is a function of its parents plus its noise.

    v = f(parents) + s g(z),   z ~ N(0, 1),   g increasing           abduct: z = g^-1((v - f(parents)) / s)

f is learned first; s is the standard deviation of its residuals and g their quantile function (``Quantiles``).

    linear            f by ordinary least squares on the encoded parents; counterfactuals keep the residual, as in dowhy.gcm's
                      additive noise model with a linear regressor
    additive_noise    f by ridge regression on a piecewise-linear basis of the parents and their pairs (``basis``), knots
                      and penalty chosen on held-out rows, least squares being one of the candidates

The distribution of the noise does not depend on the parents: Hoyer et al. 2009, Nonlinear causal discovery with additive
noise models. Where the spread depends on the parents, this model is wrong and ``spline_flow`` is right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cfaug.causal.mechanisms.basis import Basis, bases, folds, standardised
from cfaug.causal.mechanisms.conditional import CHOSEN, FEW, FITTED, row_weights
from cfaug.causal.mechanisms.flows import ScalarMechanism
from cfaug.causal.row_random import Array, Seeds
from cfaug.data.schema import Schema

KNOTS = (4, 8, 16)
PENALTIES = (1e-4, 1e-2, 1.0)  # times the rows: of standardised columns and values
MOST_QUANTILES = 33
FLATTEST = 1e-4  # the least slope of g: equal residuals become a steep density, not an atom


class Quantiles:
    """g: piecewise linear through (z_k, quantile of the residuals at Phi(z_k)), the outer lines continued; exactly invertible.

    Phi(z_k) = (k + 1/2) / K, with K about sqrt(rows) / 2, so that a normal noise of few rows does not look uneven.
    """

    def __init__(self, values: Array | None = None) -> None:
        from scipy.special import ndtri

        self.values: Array = np.zeros(0) if values is None else np.asarray(values, dtype=np.float64)
        self._z: Array = ndtri((np.arange(len(self.values)) + 0.5) / max(len(self.values), 1))

    @classmethod
    def of(cls, residuals: Array, weights: Array) -> Quantiles:
        """From residuals (B,), B > 0, with weights (B,)."""
        found = cls(np.zeros(int(np.clip(round(len(residuals) ** 0.5 / 2), 2, MOST_QUANTILES))))
        count, order = len(found.values), np.argsort(residuals, kind="stable")
        mass = np.cumsum(weights[order])
        levels = (np.arange(count) + 0.5) / count
        values = np.interp(levels, (mass - weights[order] / 2) / mass[-1], residuals[order])
        found.values = np.maximum.accumulate(values - FLATTEST * found._z) + FLATTEST * found._z
        return found

    def _line(self, at: Array, x: Array, y: Array) -> tuple[Array, Array]:
        """(value, slope) at ``at`` (B,) of the broken line through (x_k, y_k)."""
        k = np.clip(np.searchsorted(x, at) - 1, 0, len(x) - 2)
        slope = (y[k + 1] - y[k]) / (x[k + 1] - x[k])
        return y[k] + slope * (at - x[k]), slope

    def residual(self, z: Array) -> Array:
        """g(z) (B,)."""
        return self._line(z, self._z, self.values)[0]

    def noise(self, residual: Array) -> tuple[Array, Array]:
        """z = g^-1 of residuals (B,), and its derivative (B,)."""
        return self._line(residual, self.values, self._z)


class LinearMechanism(ScalarMechanism):
    """A continuous node v = least squares of its parents + noise; noise (B, 1), standard normal."""

    kind = "linear"
    convention = (
        "additive noise: a row keeps its residual from the linear regression on its parents; identifiable if the true "
        "mechanism is linear with a noise that does not depend on the parents"
    )

    def __init__(self, schema: Schema, name: str, parents: Sequence[str] = ()) -> None:
        super().__init__(schema, name, parents)
        self._basis = Basis(schema, self.parents, ((),) * len(self.parents), False)
        self._weights: Array = np.zeros((0, 1))  # (D, 1), of standardised values
        self._bias: Array = np.zeros(1)
        self._spread = 1.0  # s, in standard deviations of the attribute
        self._noise = Quantiles()

    @property
    def parameters(self) -> int:
        """The numbers of f and g; 0 before ``fit``."""
        return len(self._noise.values) and len(self._noise.values) + self._weights.size + 1

    def _expected(self, parents: pd.DataFrame) -> Array:
        """f (B,), standardised."""
        return self._basis.linear(parents, self._weights, self._bias)[:, 0]

    def _residual(self, values: pd.Series, parents: pd.DataFrame) -> Array:
        residual: Array = (self._standardised(values) - self._expected(parents)) / self._spread
        return residual

    # --- learning
    def _chosen(self, x: Array, encoded: Array, w: Array, rng: np.random.Generator) -> tuple[Basis, float]:
        return bases(self.schema, self.parents, encoded, ())[0], 0.0

    def fit(self, values: pd.Series, parents: pd.DataFrame, weights: Array | None = None, seed: int = 0) -> Any:
        """f by (penalised) least squares, then the quantiles of the residuals; DataError for an empty table."""
        w = row_weights(weights, len(values), self.name)
        x = self._standardised(values)
        rng = np.random.default_rng(seed)
        rows = rng.permutation(len(x))[:FITTED] if len(x) > FITTED else np.arange(len(x))
        encoded = self.schema.encode(parents.iloc[rows], self.parents).astype(np.float64)
        self._basis, penalty = self._chosen(x[rows], encoded, w[rows], rng)
        self._weights, self._bias = _least_squares(self._basis.columns(encoded), x[rows], w[rows], penalty)
        residual = x - self._expected(parents)
        spread = float(np.sqrt(np.average(residual**2, weights=w)))
        # a deterministic column leaves rounding errors, which must not be scaled up to a noise
        self._spread = max(spread, 1e-6)
        self._noise = Quantiles.of(residual / self._spread, w)
        return self

    # --- using
    def abduct(self, values: pd.Series, parents: pd.DataFrame, seeds: Seeds) -> Array:
        """The one noise (B, 1) that gives the values; nothing is drawn."""
        return self._noise.noise(self._residual(values, parents))[0][:, None]

    def predict(self, noise: Array, parents: pd.DataFrame) -> npt.NDArray[Any]:
        """Values (B,), float64, in the attribute's unit."""
        mean, std = self.schema[self.name].scale
        residual = self._spread * self._noise.residual(noise[:, 0])
        out: Array = mean + std * (self._expected(parents) + residual)
        return out

    def log_prob(self, values: pd.Series, parents: pd.DataFrame) -> Array:
        """log density (B,) in the attribute's own unit."""
        z, slope = self._noise.noise(self._residual(values, parents))
        out: Array = (
            np.log(slope) - (z**2 + np.log(2 * np.pi)) / 2 - np.log(self._spread * self.schema[self.name].scale[1])
        )
        return out

    # --- on disk
    def state(self) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
        """All of it as JSON, whose numbers round-trip exactly."""
        data = {
            "basis": self._basis.state(),
            "weights": self._weights[:, 0].tolist(),
            "bias": float(self._bias[0]),
            "spread": self._spread,
            "quantiles": self._noise.values.tolist(),
        }
        return {"kind": self.kind, "parents": list(self.parents)} | data, {}

    def restore(self, data: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> Any:
        """The inverse of ``state``; KeyError or ValueError for anything else."""
        self._basis = Basis.restore(self.schema, self.parents, data["basis"])
        self._weights = np.array(data["weights"], dtype=np.float64).reshape(self._basis.width, 1)
        self._bias, self._spread = np.array([data["bias"]], dtype=np.float64), float(data["spread"])
        self._noise = Quantiles(np.array(data["quantiles"], dtype=np.float64))
        return self


class AdditiveNoiseMechanism(LinearMechanism):
    """A continuous node v = smooth function of its parents + noise; noise (B, 1), standard normal."""

    kind = "additive_noise"
    convention = (
        "additive noise: a row keeps its residual from the value expected given its parents; identifiable if the noise does not "
        "depend on the parents"
    )

    def _chosen(self, x: Array, encoded: Array, w: Array, rng: np.random.Generator) -> tuple[Basis, float]:
        simple, *richer = bases(self.schema, self.parents, encoded[:CHOSEN], KNOTS)
        candidates = [(simple, 0.0), *((b, c) for b in richer for c in PENALTIES)]
        x, w, encoded = x[:CHOSEN], w[:CHOSEN], encoded[:CHOSEN]
        if len(candidates) == 1 or len(x) < FEW:
            return candidates[0]
        parts = folds(len(x), rng)
        columns = {b: b.columns(encoded) for b, _ in candidates}

        def error(candidate: tuple[Basis, float]) -> float:
            phi, total = columns[candidate[0]], 0.0
            for train, test in parts:
                weights, bias = _least_squares(phi[train], x[train], w[train], candidate[1])
                total += float(w[test] @ (x[test] - (phi[test] @ weights + bias)[:, 0]) ** 2)
            return total

        return min(candidates, key=error)


def _least_squares(columns: Array, x: Array, w: Array, penalty: float) -> tuple[Array, Array]:
    """(weights (D, 1), bias (1,)) that minimise the weighted mean of (x - phi w - b)^2 + penalty |w std|^2."""
    z, mean, std = standardised(columns)
    share = w / w.sum()
    centre, level = share @ z, float(share @ x)
    z, root = z - centre, np.sqrt(share)[:, None]
    if penalty:
        gram = (root * z).T @ (root * z) + penalty * np.eye(z.shape[1])
        scaled = np.linalg.solve(gram, (root * z).T @ (root[:, 0] * (x - level)))
    else:  # one-hot blocks are collinear with the constant: lstsq takes the shortest of several equal answers
        scaled = np.linalg.lstsq(root * z, root[:, 0] * (x - level), rcond=None)[0]
    weights = (scaled / std)[:, None]
    return weights, np.array([level - centre @ scaled]) - mean @ weights
