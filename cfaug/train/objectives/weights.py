"""Sampling and importance weights: which images count more, from group codes or from a first model's errors.

Weights (N,) sum to 1 and are meant for ``torch.utils.data.WeightedRandomSampler``; N times them are sample weights.
Weights (G,) belong to groups and are meant for ``group_weighted_loss``. Each is called once over a data set: tensors, arrays
and lists (``ImageFolder.targets``) of whole numbers will do, and the weights are on the CPU.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cfaug.errors import UsageError
from cfaug.train.objectives.checks import Integers, as_codes, as_columns, as_number, as_targets, as_whole


def class_weights(targets: Integers) -> Tensor:
    """Sampling weights (N,) float64, summing to 1, under which every class of targets (N,) is equally likely."""
    return group_weights(as_targets(targets))


def group_weights(codes: Integers) -> Tensor:
    """Sampling weights (N,) float64, summing to 1, under which every group that occurs is equally likely.

    codes (N,), or (N, A): an attribute is chosen uniformly, then one of its groups, then an image of that group. An image of no
    group (-1) has weight 1 / N, and the groups share what is left.
    """
    columns = as_columns(as_codes(codes)).cpu()
    weights = torch.zeros(len(columns), dtype=torch.float64)
    for column in columns.T:
        known = column >= 0
        # not bincount: a code may be a large number
        groups, own, count = torch.unique(column[known], return_inverse=True, return_counts=True)
        share = torch.full((len(column),), 1.0 / len(column), dtype=torch.float64)
        share[known] = known.double().mean() / (count[own].double() * len(groups))
        weights += share
    return weights / columns.shape[1]


def importance_weights(codes: Integers, groups: int | None = None) -> Tensor:
    """Weights (G,) float64 of the groups, n_known / (G' n_g), under which every group that occurs counts the same.

    codes (N,) or (N, A) integer of ALL training images, the attributes' codes disjoint; n_g images are in group g, G' groups
    of its attribute occur, n_known images have a group of it. A group that does not occur weighs 0. With them
    ``group_weighted_loss`` over the whole data is the mean under ``group_weights`` (Shimodaira 2000,
    https://doi.org/10.1016/S0378-3758(00)00115-4: reweighting to a target distribution, here the balanced one).
    Needs group labels of the training images, once. ``groups``: G, by default the largest code + 1.
    """
    columns = as_columns(as_codes(codes)).cpu()
    size = int(columns.max()) + 1
    if groups is not None:
        size = as_whole("groups", groups, size, "it is one more than the largest code")
    weights = torch.zeros(size, dtype=torch.float64)
    for column in columns.T:
        count = torch.bincount(column[column >= 0], minlength=len(weights)).double()
        if bool((weights[count > 0] > 0).any()):
            raise UsageError(
                "codes: expected codes of their own for every attribute, a code occurs in two columns; shift one column"
            )
        weights += torch.where(count > 0, count.sum() / (count.clamp(min=1) * int((count > 0).sum())), 0.0)
    return weights


def jtt_weights(predictions: Integers, targets: Integers, upweight: float = 20.0) -> Tensor:
    """Sampling weights (N,) float64, summing to 1, with the identification model's errors up-weighted (JTT).

        w_i = (lambda if yhat_i != y_i else 1) / (lambda |E| + N - |E|),      E = {i: yhat_i != y_i}

    predictions, targets (N,) integer: what a model trained for a few epochs by ERM says of its own TRAINING images, and
    their labels; lambda = ``upweight`` >= 1 (the paper's choices go from 6 to 100; tune it, and the epochs, on validation
    worst-group accuracy). Then a new model is trained with these weights. Needs no group labels in training, only in
    validation. Liu, Haghgoo, Chen, Raghunathan, Koh, Sagawa, Liang & Finn 2021, Just Train Twice,
    https://arxiv.org/abs/2107.09044.
    """
    found = as_targets(predictions, name="predictions")
    true = as_targets(targets, len(found)).to(found.device)
    factor = as_number("upweight", upweight, 1.0, "the paper uses 6 to 100")
    weights = torch.where(found != true, factor, 1.0).double().cpu()
    return weights / weights.sum()
