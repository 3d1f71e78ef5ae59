"""Metrics by group that medicine and fairness ask for, of probabilities, with intervals; and their gaps between groups.

    AUROC, balanced accuracy, TPR, FPR        scikit-learn's; of more than two classes one against the rest, mean over classes
    ECE         sum_b n_b / n |accuracy_b - confidence_b|, b: 15 bins of the probability of the class that is said (Guo et al., 2017)
    gap         the largest value of a group less the smallest; equalised odds: the larger of the gaps of TPR and FPR (Hardt et al., 2016)

Two classes are cut at a threshold, which :func:`choose_threshold` takes from validation, never from the images that are judged. Intervals
are of the percentile bootstrap over images. A group without both classes has no AUROC, TPR or FPR: None. Of several labels that an image
may have at once there is one table a label (:func:`label_metrics`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cfaug.errors import DataError, UsageError, listed

Floats = npt.NDArray[np.float64]
Codes = npt.NDArray[np.int64]
METRICS = ("auroc", "balanced_accuracy", "tpr", "fpr", "ece")
BINS = 15
DRAWS = 200


def choose_threshold(targets: npt.ArrayLike, scores: npt.ArrayLike) -> float:
    """The threshold of the positive class's probability whose balanced accuracy is best (Youden, 1950); the lowest of several.

    Args:
        targets: (N,) 0 or 1, of validation images.
        scores: (N,) probabilities of class 1; what is at or above the threshold is said to be 1.

    Raises:
        DataError: only one class.
    """
    from sklearn.metrics import roc_curve

    truth, said = np.asarray(targets), np.asarray(scores, dtype=np.float64)
    if len(np.unique(truth)) < 2:
        raise DataError("threshold: expected validation images of both classes, got one class; move some images there")
    false, true, cuts = roc_curve(truth, said)
    best = np.flatnonzero(true - false >= (true - false).max() - 1e-12)[-1]
    return float(min(cuts[best], 1.0))


def group_metrics(
    targets: npt.ArrayLike,
    probabilities: npt.ArrayLike,
    groups: Sequence[str] | npt.ArrayLike,
    threshold: float = 0.5,
    seed: int = 0,
    draws: int = DRAWS,
) -> dict[str, dict[str, Any]]:
    """Group -> {"n", and for each of METRICS (estimate, low, high) or None}; "all" first.

    Args:
        targets: (N,) classes 0..K-1.
        probabilities: (N, K), rows that sum to 1.
        groups: (N,) names.
        threshold: of class 1, where there are two classes.
        seed: of the bootstrap.
        draws: of the bootstrap.

    Raises:
        UsageError: shapes that do not fit, or a threshold outside [0, 1].
    """
    truth, said, named = (
        np.asarray(targets, dtype=np.int64),
        np.asarray(probabilities, dtype=np.float64),
        np.asarray(groups, dtype=object),
    )
    if said.ndim != 2 or said.shape[1] < 2 or not len(truth) == len(said) == len(named) or not len(truth):
        raise UsageError(
            f"expected targets (N,), probabilities (N, K) and groups (N,), got {truth.shape}, {said.shape} and {named.shape}; pass one of each per image"
        )
    if not 0 <= threshold <= 1:
        raise UsageError(f"threshold: expected a probability in [0, 1], got {threshold}")
    found = {}
    for k, group in enumerate(["all", *dict.fromkeys(named.tolist())]):
        rows = np.flatnonzero(named == group) if k else np.arange(len(named))
        found[str(group)] = {
            "n": len(rows),
            **_with_intervals(truth[rows], said[rows], threshold, np.random.default_rng([seed, k, 23]), draws),
        }
    return found


def label_metrics(
    targets: Mapping[str, npt.ArrayLike],
    probabilities: Mapping[str, npt.ArrayLike],
    groups: Sequence[str] | npt.ArrayLike,
    thresholds: Mapping[str, float] | None = None,
    seed: int = 0,
    draws: int = DRAWS,
) -> dict[str, dict[str, dict[str, Any]]]:
    """Label -> the table of :func:`group_metrics`, of images that may show several labels at once.

    Args:
        targets: label -> (N,) 0 or 1; NaN where it is not known, and those images are left out of the label's table.
        probabilities: label -> (N,) of the label being there, in [0, 1]; they need not sum to 1 over labels.
        groups: (N,) names.
        thresholds: label -> from validation; 0.5 unless said.
        seed: of the bootstrap.
        draws: of the bootstrap.

    Raises:
        UsageError: other labels in one mapping than in the other, or shapes that do not fit.
    """
    if set(targets) != set(probabilities):
        raise UsageError(
            f"expected probabilities of the labels {listed(sorted(targets))}, got {listed(sorted(probabilities)) or 'none'}; pass one array per label"
        )
    found, named = {}, np.asarray(groups, dtype=object)
    for label in targets:
        truth, said = (np.asarray(one[label], dtype=np.float64) for one in (targets, probabilities))
        if not truth.shape == said.shape == named.shape:
            raise UsageError(
                f"{label}: expected {len(named)} targets and probabilities, one per image, got {truth.shape} and {said.shape}"
            )
        known = np.isfinite(truth)
        both = np.stack([1 - said[known], said[known]], 1)
        cut = (thresholds or {}).get(label, 0.5)
        found[label] = group_metrics(truth[known].astype(np.int64), both, named[known], cut, seed, draws)
    return found


def gaps(by_group: Mapping[str, Mapping[str, Any]]) -> dict[str, float | None]:
    """Metric -> largest less smallest value among the groups ("all" apart); ``equalised_odds`` is the larger of those of TPR and FPR."""
    found: dict[str, float | None] = {}
    for name in METRICS:
        values = [row[name][0] for group, row in by_group.items() if group != "all" and row[name] is not None]
        found[name] = max(values) - min(values) if len(values) > 1 else None
    rates = [found[name] for name in ("tpr", "fpr")]
    found["equalised_odds"] = None if None in rates else max(rate for rate in rates if rate is not None)
    return found


def _with_intervals(
    truth: Codes, said: Floats, threshold: float, rng: np.random.Generator, draws: int
) -> dict[str, Any]:
    whole = metrics(truth, said, threshold)
    drawn = [metrics(truth[rows], said[rows], threshold) for rows in rng.integers(0, len(truth), (draws, len(truth)))]
    found: dict[str, Any] = {}
    for name, value in whole.items():
        if value is None:
            found[name] = None
            continue
        values = np.array([one[name] for one in drawn if one[name] is not None], dtype=np.float64)
        low, high = np.quantile(values, [0.025, 0.975]) if len(values) else (value, value)
        found[name] = [round(float(v), 6) for v in (value, low, high)]
    return found


def metrics(truth: Codes, said: Floats, threshold: float = 0.5) -> dict[str, float | None]:
    """METRICS of one group."""
    from sklearn.metrics import balanced_accuracy_score, roc_auc_score

    two = said.shape[1] == 2
    decided = (said[:, 1] >= threshold).astype(np.int64) if two else said.argmax(1)
    shown = np.unique(truth)
    found: dict[str, float | None] = dict.fromkeys(METRICS)
    found["ece"] = expected_calibration_error(truth, said)
    if len(shown) < 2:
        return found
    found["balanced_accuracy"] = float(balanced_accuracy_score(truth, decided))
    each = [1] if two else shown.tolist()
    aurocs = [roc_auc_score(truth == k, said[:, k]) for k in each]
    rates = [(np.mean(decided[truth == k] == k), np.mean(decided[truth != k] == k)) for k in each]
    found["auroc"] = float(np.mean(aurocs))
    found["tpr"], found["fpr"] = (float(np.mean([rate[i] for rate in rates])) for i in (0, 1))
    return found


def expected_calibration_error(truth: Codes, said: Floats, bins: int = BINS) -> float:
    """ECE in [0, 1] of probabilities (N, K): confidence against accuracy of the most probable class."""
    confidence, right = said.max(1), said.argmax(1) == truth
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    weight = np.bincount(place, minlength=bins) / len(truth)
    filled = weight > 0
    means = [
        np.bincount(place, weights=values, minlength=bins)[filled] / (weight[filled] * len(truth))
        for values in (confidence, right)
    ]
    return float((weight[filled] * np.abs(means[0] - means[1])).sum())
