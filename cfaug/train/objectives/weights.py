"""Sampling weights: which images are drawn more often, from group codes or from the errors of a first model.

Weights (N,) sum to 1 and are meant for ``torch.utils.data.WeightedRandomSampler``. They are computed once per data set, from
tensors, arrays or lists (``ImageFolder.targets``) of whole numbers, and are on the CPU.
"""

from __future__ import annotations

from collections.abc import Collection

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


def origin_weights(codes: Integers, origins: Integers, shown: Collection[int] | None = None) -> Tensor:
    """Relative weights (N,) float64 under which the group is independent of the origin; their mean is 1 within each origin.

        w_i = n_o / (G n_(o, g)),      o: where image i comes from (real, counterfactual, reconstruction), g: its group, of G

    Real images of confounded data, beside counterfactuals that are not, leave the mixture confounded, and where only some groups
    have real images, the origin tells the group. So within each origin every group counts the same. An origin that lacks a group
    which another origin has is left out (weight 0), as real images are at a correlation of 1; if all lack one, none is.

    codes (N,) or (N, A), origins (N,) whole numbers; ``shown``: the origins that take part, all unless given. An image of no group (-1) has weight 1; with A columns the mean of theirs counts.
    """
    columns = as_columns(as_codes(codes)).cpu()
    kinds = as_targets(origins, len(columns), name="origins").cpu()
    part = torch.ones(len(kinds), dtype=torch.bool) if shown is None else torch.isin(kinds, torch.tensor(sorted(shown)))
    weights = torch.zeros(len(columns), dtype=torch.float64)
    for column in columns.T:
        groups = torch.unique(column[(column >= 0) & part])
        own = torch.ones(len(column), dtype=torch.float64)
        lacking = torch.zeros(len(column), dtype=torch.bool)
        for kind in torch.unique(kinds[part]):
            here = (kinds == kind) & (column >= 0)
            found, place, count = torch.unique(column[here], return_inverse=True, return_counts=True)
            own[here] = int(here.sum()) / (len(found) * count[place].double())
            lacking[here] = len(found) < len(groups)
        if not bool(lacking[(column >= 0) & part].all()):
            own[lacking] = 0.0
        weights += own
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
