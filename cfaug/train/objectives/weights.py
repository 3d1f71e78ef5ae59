"""Sampling weights: which images are drawn more often, from group codes or from the errors of a first model.

Weights (N,) sum to 1 and are meant for ``torch.utils.data.WeightedRandomSampler``. They are computed once per data set, from
tensors, arrays or lists (``ImageFolder.targets``) of whole numbers, and are on the CPU.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cfaug.train.objectives.checks import Integers, as_codes, as_columns, as_targets, at_least


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


def jtt_weights(predictions: Integers, targets: Integers, upweight: float = 20.0) -> Tensor:
    """Sampling weights (N,) float64, summing to 1, with the identification model's errors up-weighted (JTT).

        w_i = (lambda if yhat_i != y_i else 1) / (lambda |E| + N - |E|),      E = {i: yhat_i != y_i}

    predictions, targets (N,) whole numbers: what a model that was trained for a few epochs by ERM says of its own TRAINING
    images, and their labels; lambda = ``upweight`` >= 1 (the paper's choices go from 6 to 100; tune it, and the epochs, on
    validation worst-group accuracy). Then a new model is trained with these weights. Training needs no group labels, only
    validation does. Liu, Haghgoo, Chen, Raghunathan, Koh, Sagawa, Liang & Finn 2021, Just Train Twice,
    https://arxiv.org/abs/2107.09044.
    """
    found = as_targets(predictions, name="predictions")
    true = as_targets(targets, len(found)).to(found.device)
    weights = torch.where(found != true, at_least("upweight", upweight, 1.0), 1.0).double().cpu()
    return weights / weights.sum()
