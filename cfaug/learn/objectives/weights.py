"""Sampling and importance weights: which images count more, from group codes or from a first model's errors.

Weights (N,) sum to 1 and are meant for ``torch.utils.data.WeightedRandomSampler``; N times them are sample weights.
Weights (G,) belong to groups and are meant for ``group_weighted_loss``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cfaug.errors import UsageError
from cfaug.learn.objectives.checks import as_columns, check_codes


def class_weights(targets: Tensor) -> Tensor:
    """Sampling weights (N,) float64, summing to 1, under which every class that occurs is equally likely."""
    return group_weights(targets)


def group_weights(codes: Tensor) -> Tensor:
    """Sampling weights (N,) float64, summing to 1, under which every group that occurs is equally likely.

    codes (N, A): an attribute is chosen uniformly, then one of its groups, then an image of that group. An image of no
    group (-1) has weight 1 / N, and the groups share what is left.
    """
    columns = as_columns(codes)
    weights = torch.zeros(len(columns), dtype=torch.float64)
    for column in columns.T:
        known = column >= 0
        count = torch.bincount(column[known])
        share = torch.full((len(column),), 1.0 / len(column), dtype=torch.float64)
        share[known] = known.double().mean() / (count[column[known]].double() * int((count > 0).sum()))
        weights += share
    return weights / columns.shape[1]


def importance_weights(codes: Tensor, groups: int | None = None) -> Tensor:
    """Weights (G,) float64 of the groups, n_known / (G' n_g), under which every group that occurs counts the same.

    codes (N,) or (N, A) int64 of ALL training images, the attributes' codes disjoint; n_g images are in group g, G' groups
    of its attribute occur, n_known images have a group of it. A group that does not occur weighs 0. With them
    ``group_weighted_loss`` over the whole data is the mean under ``group_weights`` (Shimodaira 2000,
    https://doi.org/10.1016/S0378-3758(00)00115-4: reweighting to a target distribution, here the balanced one).
    Needs group labels of the training images, once. ``groups``: G, by default the largest code + 1.
    """
    check_codes(codes, len(codes))
    columns = as_columns(codes)
    size = int(columns.max()) + 1 if columns.numel() else 0
    if groups is not None and groups < size:
        raise UsageError(f"groups: expected at least {size}, one more than the largest code, came {groups}")
    weights = torch.zeros(size if groups is None else groups, dtype=torch.float64)
    for column in columns.T:
        count = torch.bincount(column[column >= 0], minlength=len(weights)).double()
        if bool((weights[count > 0] > 0).any()):
            raise UsageError(
                "codes: expected codes of their own for every attribute, a code occurs in two columns; shift one column"
            )
        weights += torch.where(count > 0, count.sum() / (count.clamp(min=1) * int((count > 0).sum())), 0.0)
    return weights


def jtt_weights(predictions: Tensor, targets: Tensor, upweight: float = 20.0) -> Tensor:
    """Sampling weights (N,) float64, summing to 1, with the identification model's errors up-weighted (JTT).

        w_i = (lambda if yhat_i != y_i else 1) / (lambda |E| + N - |E|),      E = {i: yhat_i != y_i}

    predictions, targets (N,) int64: what a model trained for a few epochs by ERM says of its own TRAINING images, and
    their labels; lambda = ``upweight`` >= 1 (the paper's choices go from 6 to 100; tune it, and the epochs, on validation
    worst-group accuracy). Then a new model is trained with these weights. Needs no group labels in training, only in
    validation. Liu, Haghgoo, Chen, Raghunathan, Koh, Sagawa, Liang & Finn 2021, Just Train Twice,
    https://arxiv.org/abs/2107.09044.
    """
    if predictions.shape != targets.shape or targets.ndim != 1 or not len(targets):
        raise UsageError(
            f"expected predicted and true classes (N,) of N > 0 images, came {tuple(predictions.shape)} and "
            f"{tuple(targets.shape)}; pass logits.argmax(1)"
        )
    if predictions.is_floating_point():
        raise UsageError(f"predictions: expected class codes, came {predictions.dtype}; pass logits.argmax(1)")
    if not 1.0 <= upweight < float("inf"):
        raise UsageError(f"upweight: expected a number of at least 1, came {upweight}; the paper uses 6 to 100")
    weights = torch.where(predictions != targets, float(upweight), 1.0).double()
    return weights / weights.sum()
