"""Objectives and sampling weights: plain functions of per-sample losses and group codes.

Empirical risk:  mean_i l_i.
Group DRO:       min_theta max_q sum_g q_g L_g, with q_g <- q_g exp(eta L_g) renormalised after every batch,
                 L_g the mean loss of group g in the batch and 0 where the batch has none of it
                 (Sagawa, Koh, Hashimoto & Liang 2020, algorithm 1, arXiv 1911.08731).

Group codes are int64, shape (B,) when a sample is in one group and (B, A) when it is in one group per spurious
attribute; -1 is no group, because the attribute is not known. Such samples keep the share that they have in the data:
they are drawn and count as under empirical risk, and only the rest is balanced. A group of their own would let a few
images without a label outweigh thousands. Not promised: that a group with a handful of images can be fitted without memorising it; that is what
weight decay and early stopping on validation worst-group accuracy are for.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from cfaug.errors import UsageError


def erm_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy. logits (B, K) float, targets (B,) int64 in 0..K-1; returns a scalar."""
    return functional.cross_entropy(logits, targets)


def as_columns(codes: Tensor) -> Tensor:
    """Group codes (B,) or (B, A) as (B, A)."""
    return codes if codes.ndim == 2 else codes[:, None]


class GroupDRO:
    """The adversarial group weights q and the loss they define.

    ``groups`` is the number of group codes, ``step_size`` the paper's eta_q (0.01 in all its experiments),
    ``adjustment`` its generalisation constant C: C / sqrt(n_g) is added to the group's loss (needs ``counts``).
    """

    def __init__(
        self, groups: int, step_size: float = 0.01, adjustment: float = 0.0, counts: Tensor | None = None
    ) -> None:
        if groups < 1:
            raise UsageError(
                f"GroupDRO expected at least one group, came {groups}; pass the group codes of the train set"
            )
        if step_size <= 0:
            raise UsageError(f"GroupDRO expected step_size above 0, came {step_size}; the paper uses 0.01")
        if adjustment and counts is None:
            raise UsageError("GroupDRO expected the group counts with adjustment; pass counts=, one number a group")
        self.weights = torch.full((groups,), 1.0 / groups)
        self.step_size = step_size
        self._margin = torch.zeros(groups)
        if counts is not None and adjustment:
            self._margin = torch.where(counts > 0, adjustment / counts.clamp(min=1).float().sqrt(), torch.tensor(0.0))

    def __call__(self, losses: Tensor, codes: Tensor) -> Tensor:
        """losses (B,) per sample, codes (B,) or (B, A); moves q, then returns sum_g q_g L_g (a scalar).

        With samples of no group: s sum_g q_g L_g + (1 - s) (their mean loss), s the share of those that have one.
        """
        columns = as_columns(codes)
        flat = columns.reshape(-1)
        repeated = losses[:, None].expand_as(columns).reshape(-1)
        known = flat >= 0
        if not bool(known.all()):
            others = repeated[~known]
            whole = len(flat)
            flat, repeated = flat[known], repeated[known]
            return self._robust(flat, repeated) * (len(flat) / whole) + others.sum() / whole
        return self._robust(flat, repeated)

    def _robust(self, flat: Tensor, repeated: Tensor) -> Tensor:
        count = torch.bincount(flat, minlength=len(self.weights))
        total = torch.zeros(len(self.weights), dtype=repeated.dtype, device=repeated.device).index_add(
            0, flat, repeated
        )
        group_losses = total / count.clamp(min=1)
        adjusted = group_losses + self._margin * (count > 0)
        # softmax of the log weights is the same update, and cannot overflow when a loss explodes
        self.weights = torch.softmax(self.weights.log() + self.step_size * adjusted.detach(), dim=0)
        return (self.weights * adjusted).sum()


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
