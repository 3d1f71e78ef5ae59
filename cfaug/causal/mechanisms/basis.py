"""Piecewise-linear functions of encoded parents and of their pairs: the columns of the regressions of this room.

    continuous x         x, max(0, x - knot) for each knot; knots at equally spaced quantiles of the training rows
    ordinal              the same of its encoded rank; knots at inner ranks
    categorical          one-hot
    every two parents    all products of the columns of one with those of the other

Spline bases and their tensor products: Friedman 1991, Multivariate adaptive regression splines; Hastie, Tibshirani and
Friedman 2009, chapter 5. Outside the training range a function continues as a straight line. Three parents interact
only through their pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cfaug.causal.row_random import Array
from cfaug.data.schema import Schema

ROWS = 8192  # evaluated at a time: the columns of so many rows stay in the processor's cache
WIDEST = 400  # columns at most: the pairs of parents with many values would need too much memory and too many rows


@dataclass(frozen=True)
class Basis:
    """The columns phi(parents) in R^D, D = ``width``; ``knots`` one tuple per parent, in encoded units."""

    schema: Schema
    parents: tuple[str, ...]
    knots: tuple[tuple[float, ...], ...]
    pairs: bool

    @classmethod
    def at_quantiles(cls, schema: Schema, parents: Sequence[str], encoded: Array, count: int, pairs: bool) -> Basis:
        """``count`` knots per parent (fewer for ordinal and nearly discrete ones) from its encoded rows (B, E)."""
        knots: list[tuple[float, ...]] = []
        for name, where in schema.blocks(parents).items():
            x = encoded[:, where.start]
            if schema[name].kind == "categorical" or not count:
                knots.append(())
                continue
            if schema[name].kind == "ordinal":
                levels = np.linspace(-1.0, 1.0, len(schema[name].categories))[1:-1]
                picked = levels[np.linspace(0, len(levels) - 1, min(count, len(levels))).round().astype(int)]
            else:
                picked = np.quantile(x, np.linspace(0, 1, count + 2)[1:-1])
            # a knot at the edge gives a column of zeros, or one that repeats x itself
            knots.append(tuple(float(k) for k in np.unique(picked) if x.min() < k < x.max()))
        return cls(schema, tuple(parents), tuple(knots), pairs)

    @property
    def _widths(self) -> tuple[int, ...]:
        return tuple(self.schema[p].width + len(k) for p, k in zip(self.parents, self.knots))

    @property
    def width(self) -> int:
        """D, the number of columns."""
        sizes = self._widths
        total = sum(sizes)
        return total + (total * total - sum(s * s for s in sizes)) // 2 * self.pairs

    def columns(self, encoded: Array) -> Array:
        """phi of encoded parents (B, E): (B, D), float64."""
        blocks = []
        for where, knots in zip(self.schema.blocks(self.parents).values(), self.knots):
            x = encoded[:, where]
            blocks.append(np.concatenate([x, *(np.maximum(0.0, x - k) for k in knots)], axis=1))
        out = list(blocks)
        if self.pairs:
            for i, a in enumerate(blocks):
                out += [(a[:, :, None] * b[:, None, :]).reshape(len(a), a.shape[1] * b.shape[1]) for b in blocks[:i]]
        return np.concatenate(out, axis=1) if out else np.zeros((len(encoded), 0))

    def linear(self, parents: pd.DataFrame, weights: Array, bias: Array) -> Array:
        """phi(parents) @ weights + bias for ``weights`` (D, K) and ``bias`` (K,): (B, K)."""
        encoded = self.schema.encode(parents, self.parents).astype(np.float64)
        out = np.empty((len(encoded), len(bias)))
        for start in range(0, len(encoded), ROWS):
            rows = slice(start, start + ROWS)
            out[rows] = self.columns(encoded[rows]) @ weights + bias
        return out

    def state(self) -> dict[str, Any]:
        """JSON from which ``restore`` makes an equal basis of the same schema and parents."""
        return {"knots": [list(k) for k in self.knots], "pairs": self.pairs}

    @classmethod
    def restore(cls, schema: Schema, parents: Sequence[str], data: Mapping[str, Any]) -> Basis:
        """The inverse of ``state``."""
        return cls(schema, tuple(parents), tuple(tuple(map(float, k)) for k in data["knots"]), bool(data["pairs"]))


def bases(schema: Schema, parents: Sequence[str], encoded: Array, counts: Sequence[int]) -> list[Basis]:
    """Candidates, simplest first: linear without knots and pairs, then for each number of knots with all pairs.

    The pairs are left out where there would be more columns than rows, or than ``WIDEST``.
    """
    found = [Basis.at_quantiles(schema, parents, encoded, 0, False)]
    for count in counts:
        for pairs in (True, False):
            one = Basis.at_quantiles(schema, parents, encoded, count, pairs)
            if one.width <= min(WIDEST, len(encoded)):
                found.append(one)
                break
    return list(dict.fromkeys(found))


def standardised(columns: Array) -> tuple[Array, npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """(columns with mean 0 and std 1, mean (D,), std (D,)); a constant column becomes zeros, with std 1."""
    mean, std = columns.mean(axis=0), columns.std(axis=0)
    std = np.where(std > 1e-9 * np.maximum(1.0, np.abs(mean)), std, np.inf)
    return (columns - mean) / std, mean, std


def folds(n: int, rng: np.random.Generator) -> list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """(training rows, held-out rows): five folds of fewer than 2 000 rows, otherwise one fifth held out once."""
    parts = np.array_split(rng.permutation(n), 5)
    return [(np.concatenate([p for j, p in enumerate(parts) if j != i]), parts[i]) for i in range(5 if n < 2000 else 1)]
