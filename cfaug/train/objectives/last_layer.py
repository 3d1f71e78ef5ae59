"""Deep feature reweighting: the last layer is fitted again on group-balanced features, the rest stays as it is.

    z = (phi - mean) / scale,     min_W  C sum_{i in balanced subsample} cross_entropy(W z_i + b, y_i) + |W|_1   (or |W|^2 / 2)

on several random subsamples with the same number of images from every group, W and b averaged over them. C is chosen by
worst-group accuracy on one half of the data after fitting on the other. Kirichenko, Izmailov & Wilson 2023, Last Layer Re-Training is
Sufficient for Robustness to Spurious Correlations, https://arxiv.org/abs/2204.02937. Theirs is scikit-learn's liblinear, which
penalises the intercept and has no softmax for many classes; ours is scikit-learn's saga, which leaves the
intercept unpenalised and has a softmax.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from cfaug.errors import UsageError, described
from cfaug.train.objectives.checks import Integers, as_codes, as_targets, as_tensor, at_least

Array = npt.NDArray[np.float64]
Whole = npt.NDArray[np.int64]
Penalty = Literal["l1", "l2"]
PAPER_C = (1.0, 0.7, 0.3, 0.1, 0.07, 0.03, 0.01)


@dataclass(frozen=True)
class LastLayer:
    """A linear layer on raw features: weight (K, D), bias (K,), standardisation folded in; ``c``: the penalty chosen."""

    weight: Tensor
    bias: Tensor
    c: float

    def logits(self, features: Tensor | npt.NDArray[Any]) -> Tensor:
        """(B, D) -> (B, K) float64. torch says so when the features are of a different width."""
        return as_tensor(features).to(self.weight) @ self.weight.T + self.bias

    def predict(self, features: Tensor | npt.NDArray[Any]) -> Tensor:
        """(B, D) -> classes (B,) int64."""
        return self.logits(features).argmax(dim=1)

    def write_into(self, layer: nn.Linear) -> None:
        """Copy weight and bias into the net's last layer. UsageError unless it has this shape and a bias."""
        shape = tuple(layer.weight.shape)
        if shape != tuple(self.weight.shape) or layer.bias is None:  # copy_ would repeat one row for all classes
            raise UsageError(
                f"layer: expected a Linear with bias and weight {tuple(self.weight.shape)}, got weight {shape}"
                f"{'' if layer.bias is not None else ' without bias'}; pass the layer that these features go into"
            )
        with torch.no_grad():
            layer.weight.copy_(self.weight)
            layer.bias.copy_(self.bias)


def dfr(
    features: Tensor | npt.NDArray[Any],
    targets: Integers,
    codes: Integers,
    c: float | Sequence[float] = PAPER_C,
    subsamples: int = 20,
    seed: int = 0,
    max_iter: int = 1000,
    penalty: Penalty = "l1",
) -> LastLayer:
    """Fit the last layer again on held-out images: features (N, D) float, targets (N,), codes (N,) or (N, A) integer.

    Features are what goes into the last layer, of images that the net was NOT trained on (the validation split); the
    targets must show every class from 0 up. A group is a target with its codes; rows with a code of -1 are left out.
    ``c``: one inverse penalty, or those to choose from (the paper's by default); ``subsamples``: how many balanced subsamples
    are averaged; ``max_iter``: the most passes of one fit; ``penalty``: l1 as in the paper, or l2. Group labels are needed of these images only, after training.
    UsageError where a group is too small to be in both halves. Everything is drawn from ``seed``.
    """
    features = as_tensor(features)
    if features.ndim != 2 or not features.is_floating_point() or not len(features):
        raise UsageError(
            f"features: expected float (N, D), N > 0, got {described(features)}; pass what goes into the last layer"
        )
    if not bool(torch.isfinite(features).all()):
        raise UsageError("features: expected finite numbers, got some that are not; check the net")
    y = as_targets(targets, len(features)).cpu().numpy()
    classes = int(y.max()) + 1
    a = as_codes(codes, len(features)).cpu().numpy().reshape(len(y), -1)
    choices = [at_least("c", float(each), 1e-12) for each in np.atleast_1d(np.asarray(c))]
    x = features.detach().cpu().double().numpy()
    known = (a >= 0).all(axis=1)
    x, y, a = x[known], y[known], a[known]
    if classes < 2 or len(np.unique(y)) != classes:
        raise UsageError(
            f"targets: expected two or more classes and images with a group of each of {classes}, got classes "
            f"{np.unique(y).tolist()}; renumber them from 0, or pass more images"
        )
    _, groups = np.unique(np.column_stack([y, a]), axis=0, return_inverse=True)
    groups = groups.reshape(-1).astype(np.int64)
    rng = np.random.default_rng(seed)
    chosen = choices[0] if len(choices) == 1 else _choose(x, y, groups, choices, rng, max_iter, penalty)
    mean, scale = _standard(x)
    fits = [
        _fit((x[rows] - mean) / scale, y[rows], chosen, max_iter, penalty)
        for rows in _balanced(groups, subsamples, rng)
    ]
    weight, bias = (np.mean(parts, axis=0) for parts in zip(*fits))
    raw = weight / scale
    return LastLayer(torch.from_numpy(raw), torch.from_numpy(bias - raw @ mean), chosen)


def _choose(
    x: Array, y: Whole, groups: Whole, choices: Sequence[float], rng: np.random.Generator, steps: int, penalty: Penalty
) -> float:
    """The c of the best worst-group accuracy on one half after fitting on the other; a tie goes to the first."""
    first = np.zeros(len(y), dtype=bool)
    for g in np.unique(groups):
        rows = rng.permutation(np.flatnonzero(groups == g))
        if len(rows) < 2:
            raise UsageError(
                "codes: expected two or more images of every group to choose c, got a group of one; pass one c"
            )
        first[rows[: len(rows) // 2]] = True
    mean, scale = _standard(x[first])
    rows = np.flatnonzero(first)[_balanced(groups[first], 1, rng)[0]]
    z, worst = (x[~first] - mean) / scale, []
    for c in choices:
        weight, bias = _fit((x[rows] - mean) / scale, y[rows], c, steps, penalty)
        right = (z @ weight.T + bias).argmax(axis=1) == y[~first]
        worst.append(min(right[groups[~first] == g].mean() for g in np.unique(groups)))
    return float(choices[int(np.argmax(worst))])


def _standard(x: Array) -> tuple[Array, Array]:
    """Mean and scale of each feature; a feature that never changes keeps scale 1."""
    scale = x.std(axis=0)
    return x.mean(axis=0), np.where(scale > 0, scale, 1.0)


def _balanced(groups: Whole, subsamples: int, rng: np.random.Generator) -> list[Whole]:
    """Rows of each subsample: as many of every group as the smallest has, without replacement. Equal groups have one subsample."""
    of = [np.flatnonzero(groups == g) for g in np.unique(groups)]
    size = min(len(rows) for rows in of)
    if all(len(rows) == size for rows in of):
        subsamples = 1
    return [np.concatenate([rng.permutation(rows)[:size] for rows in of]) for _ in range(subsamples)]


def _fit(z: Array, y: Whole, c: float, max_iter: int, penalty: Penalty) -> tuple[Array, Array]:
    """(K, D) and (K,): logistic regression; two classes become two rows of opposite sign."""
    from sklearn.linear_model import LogisticRegression

    # scikit-learn 1.8 took penalty= away in favour of l1_ratio=
    lasso: dict[str, Any] = {"penalty": "l1"} if LogisticRegression().l1_ratio is None else {"l1_ratio": 1.0}
    if penalty == "l1":
        model = LogisticRegression(C=c, solver="saga", max_iter=max_iter, tol=1e-3, random_state=0, **lasso)
    else:
        model = LogisticRegression(C=c, max_iter=max_iter)
    model.fit(z, y)
    weight, bias = np.asarray(model.coef_), np.asarray(model.intercept_)
    return (weight, bias) if len(weight) > 1 else (np.vstack([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2)
