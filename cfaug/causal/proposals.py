"""Where to try next: a proposal fitted, row by row, to weighted draws of noises that are standard normal beforehand.

    q = 0.1 phi + 0.9 (mixture of 3 normals)

The mixture is fitted by EM (Cappe et al. 2008) to weights raised to the power that keeps their effective sample size at
``TEMPERED`` (tempering: Neal 2001); the prior's tenth bounds the correction log phi - log q (Hesterberg 1995). B rows at once,
each with its own q.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cfaug.causal.draws import Array

Mask = npt.NDArray[np.bool_]
TEMPERED = 32.0  # effective completions that q is fitted to: enough for a few normals
DEFENCE = 0.1  # share of the prior in q
COMPONENTS = 3
STEPS = 4  # of EM: the next round corrects what is left
TINY = 1e-16  # a variance: noises nearer than 1e-8 are one


@dataclass(frozen=True)
class Proposal:
    """q for B rows: 0.1 phi + 0.9 (mixture of C normals) in the D noises of the free attributes.

    ``masks`` (B, D) says which of them a row has; in the others nothing moves, so that a row's q does not depend on what
    the rows beside it lack. Before the first fit q is the prior, and ``shares`` are 0.
    """

    masks: Mask
    shares: Array  # (B, C), sum 0.9 or 0
    means: Array  # (B, C, D)
    roots: Array  # (B, C, D, D), lower Cholesky factors of the covariances

    @classmethod
    def prior(cls, masks: Mask) -> Proposal:
        n, d = masks.shape
        eye = np.broadcast_to(np.eye(d), (n, COMPONENTS, d, d)).copy()
        return cls(masks, np.zeros((n, COMPONENTS)), np.zeros((n, COMPONENTS, d)), eye)

    def __getitem__(self, rows: npt.NDArray[np.int64]) -> Proposal:
        return Proposal(self.masks[rows], self.shares[rows], self.means[rows], self.roots[rows])

    def put(self, rows: npt.NDArray[np.int64], q: Proposal) -> None:
        """Replace that of some rows."""
        self.shares[rows], self.means[rows], self.roots[rows] = q.shares, q.means, q.roots

    def move(self, noise: Array, u: Array) -> Array:
        """Draws (B, M, D) from q: of standard normal ones, and of uniform ones (B, M) that choose the component."""
        noise = np.where(self.masks[:, None, :], noise, 0.0)
        out, upper = noise, np.zeros((len(u), 1))
        for c in range(COMPONENTS):
            lower, upper = upper, upper + self.shares[:, c, None]
            moved = self.means[:, c, None, :] + noise @ self.roots[:, c].swapaxes(1, 2)
            out = np.where(((u >= lower) & (u < upper))[..., None], moved, out)
        return out

    def correction(self, noise: Array) -> Array:
        """log phi(z) - log q(z) of z (B, M, D): (B, M), at most log(1 / 0.1)."""
        prior = -0.5 * (noise**2).sum(axis=2)
        rest = 1.0 - self.shares.sum(axis=1)
        parts = [prior + np.log(rest)[:, None], *self._parts(noise)]
        out: Array = prior - np.logaddexp.reduce(parts, axis=0)
        return out

    def _parts(self, noise: Array) -> list[Array]:
        """log(share times density) (B, M) of each component, up to the constant that phi has too."""
        with np.errstate(divide="ignore"):
            shares = np.log(self.shares)
        out = []
        for c in range(COMPONENTS):
            root = self.roots[:, c]
            scaled = (noise - self.means[:, c, None, :]) @ np.linalg.inv(root).swapaxes(1, 2)
            volume = np.log(np.diagonal(root, axis1=1, axis2=2)).sum(axis=1)
            out.append((shares[:, c] - volume)[:, None] - 0.5 * (scaled**2).sum(axis=2))
        return out

    @classmethod
    def fit(cls, noise: Array, scores: Array, masks: Mask) -> Proposal:
        """The mixture, by EM, of draws (B, M, D) weighted by their tempered scores (B, M)."""
        w = tempered(scores)
        # the first centre is the best draw, each next one the heaviest and farthest from those before: no randomness needed
        mean = np.einsum("bm,bmd->bd", w, noise)[:, None, :]
        x = (noise - mean) / (np.sqrt(np.einsum("bm,bmd->bd", w, (noise - mean) ** 2)) + TINY)[:, None, :]
        rows, away = np.arange(len(w)), []
        lead = np.argmax(w, axis=1)
        for _ in range(COMPONENTS):
            away.append(((x - x[rows, lead][:, None, :]) ** 2).sum(axis=2))
            lead = np.argmax(w * np.min(away, axis=0), axis=1)
        nearest = np.argmin(away, axis=0)
        belongs = np.stack([nearest == c for c in range(COMPONENTS)]).astype(np.float64)
        q = cls._of(noise, w * belongs, masks)
        for _ in range(STEPS):
            parts = np.stack(q._parts(noise))
            q = cls._of(noise, w * np.exp(parts - np.logaddexp.reduce(parts, axis=0)), masks)
        # wider than what was fitted, or q would close in before it has reached a posterior in the prior's tail; 1 + 1 / D a
        # noise makes its volume at most e times larger. A noise that a row does not have stays at 0
        widen = np.where(masks, 1 + 1 / np.maximum(masks.sum(axis=1, keepdims=True), 1), 1.0)[:, None, :, None]
        return cls(masks, q.shares * (1 - DEFENCE), q.means, q.roots * widen)

    @classmethod
    def _of(cls, noise: Array, w: Array, masks: Mask) -> Proposal:
        """The M step: shares (sum 1), means and covariances under weights w (C, B, M) that sum to 1 over C and M.

        A component of few effective draws leans on the covariance that all have in common.
        """
        shares = w.sum(axis=2).T + TINY
        effective = shares**2 / ((w**2).sum(axis=2).T + TINY**2)
        means = np.einsum("cbm,bmd->bcd", w, noise) / shares[..., None]
        spreads = np.empty((len(noise), len(w), noise.shape[2], noise.shape[2]))
        for c in range(len(w)):
            apart = noise - means[:, c, None, :]
            spreads[:, c] = (apart * w[c][..., None]).swapaxes(1, 2) @ apart
        common = spreads.sum(axis=1, keepdims=True)
        moving = masks.sum(axis=1)[:, None]
        lean = (moving + 1) / (effective + moving + 1)
        spreads = (1 - lean)[..., None, None] * spreads / shares[..., None, None] + lean[..., None, None] * common
        eye = np.eye(noise.shape[2])
        # fewer draws than dimensions would give a covariance without a root; so would all weight on one draw
        full = np.maximum(0.0, 1.0 - TEMPERED / (2 * np.maximum(moving, 1)))[..., None, None]
        variances = np.diagonal(spreads, axis1=2, axis2=3)[..., None] * eye
        spreads = (1 - full) * spreads + full * variances + 1e-6 * variances + TINY * eye
        both = masks[:, None, :, None] & masks[:, None, None, :]
        spreads = np.where(both, spreads, eye)
        roots: Array = np.linalg.cholesky(spreads).astype(np.float64)
        return cls(masks, shares / shares.sum(axis=1, keepdims=True), means, roots)


def weights_of(scores: Array) -> Array:
    """exp(score - the row's largest) (B, M); zeros where all are impossible."""
    top = scores.max(axis=1, keepdims=True)
    out: Array = np.exp(np.where(np.isfinite(top), scores - np.where(np.isfinite(top), top, 0.0), -np.inf))
    return out


def effective_size(scores: Array) -> Array:
    """Kish's effective sample size (B,) of log weights (B, M): from 1 to M, and 0 where all are impossible."""
    w = weights_of(scores)
    out: Array = w.sum(axis=1) ** 2 / np.maximum((w**2).sum(axis=1), TINY)
    return out


def tempered(scores: Array) -> Array:
    """Weights (B, M), sum 1, proportional to exp(beta score): the largest beta in [0, 1] that keeps ``TEMPERED`` effective."""
    scores = np.where(np.isfinite(scores).any(axis=1, keepdims=True), scores, 0.0)
    low, high = np.full(len(scores), -30.0), np.zeros(len(scores))  # log beta
    high_enough = effective_size(scores) >= TEMPERED
    for _ in range(20):
        middle = (low + high) / 2
        fine = effective_size(np.exp(middle)[:, None] * scores) >= TEMPERED
        low, high = np.where(fine, middle, low), np.where(fine, high, middle)
    w = weights_of(np.exp(np.where(high_enough, 0.0, low))[:, None] * scores)
    out: Array = w / w.sum(axis=1, keepdims=True)
    return out
