"""Measures of a set of images on the features of a named net: realism, memorisation, diversity; and of one image, minimality.

    realism        squared maximum mean discrepancy from real images, kernel (x.y + 1)^3 (Binkowski et al., 2018), with an interval
    memorisation   share of images nearer to a training image (not their source) than 1 % of held-out images are
    diversity      mean distance between images of one class, relative to real ones'
    minimality     d(x, x') / d(x, x*), x*: a real image of the same class with the wanted value; 1: no nearer to its source than any other

Features (N, D), of length 1. The Frechet distance is left out: with few images its bias is larger than what it is to tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
SUBSETS, SUBSET = 50, 100
"""Random subsets, and images in each at most, whose discrepancies make the interval."""


@dataclass(frozen=True)
class Realism:
    """Mean over subsets and the 2.5 to 97.5 % quantiles; 0 is the discrepancy of two samples of one distribution."""

    mmd2: float
    low: float
    high: float


def realism(images: Floats, real: Floats, seed: int = 0) -> Realism:
    """The squared maximum mean discrepancy between two sets of features (N, D) and (M, D), unbiased, so it may be below 0."""
    rng = np.random.default_rng([seed, 21])
    size = min(SUBSET, len(images), len(real))
    found = [
        _mmd2(images[rng.permutation(len(images))[:size]], real[rng.permutation(len(real))[:size]])
        for _ in range(SUBSETS)
    ]
    low, high = np.quantile(found, [0.025, 0.975])
    return Realism(float(np.mean(found)), float(low), float(high))


def _mmd2(a: Floats, b: Floats) -> float:
    def kernel(x: Floats, y: Floats) -> Floats:
        return (x @ y.T + 1) ** 3

    n, m = len(a), len(b)
    within = (kernel(a, a).sum() - np.trace(kernel(a, a))) / (n * (n - 1))
    within += (kernel(b, b).sum() - np.trace(kernel(b, b))) / (m * (m - 1))
    return float(within - 2 * kernel(a, b).mean())


def memorisation(images: Floats, held_out: Floats, train: Floats, own: Sequence[int | None] | None = None) -> float:
    """Share of ``images`` nearer to ``train`` than all but 1 % of ``held_out`` are; ``own``: row of each image's source, left out."""
    distances = _distances(images, train)
    for i, row in enumerate(own or ()):
        if row is not None:
            distances[i, row] = np.inf
    least = np.quantile(_distances(held_out, train).min(axis=1), 0.01)
    return float((distances.min(axis=1) < least).mean())


def diversity(images: Floats, real: Floats, classes: Sequence[str], real_classes: Sequence[str]) -> float | None:
    """Mean distance within a class over that of real images; None where no class has two images in both."""
    mine, theirs = np.asarray(classes), np.asarray(real_classes)
    pairs = [
        (_spread(images[mine == one]), _spread(real[theirs == one]))
        for one in sorted(set(classes))
        if (mine == one).sum() > 1 and (theirs == one).sum() > 1
    ]
    return float(np.mean([a for a, _ in pairs]) / np.mean([b for _, b in pairs])) if pairs else None


def minimality(source: Floats, made: Floats, other: Floats) -> float:
    """Mean distance of images to their sources, relative to that of other real images (row by row) which show what was wanted."""
    return float(np.linalg.norm(source - made, axis=1).mean() / np.linalg.norm(source - other, axis=1).mean())


def _spread(features: Floats) -> float:
    distances = _distances(features, features)
    return float(distances.sum() / (len(features) * (len(features) - 1)))


def _distances(a: Floats, b: Floats) -> Floats:
    squared = (a * a).sum(1)[:, None] + (b * b).sum(1)[None] - 2 * a @ b.T
    return np.asarray(np.sqrt(np.maximum(squared, 0)))
