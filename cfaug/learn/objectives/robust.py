"""Group DRO: the loss of the worst mixture of groups, followed by an adversary that moves after every batch.

    min_theta max_q sum_g q_g L_g,      q_g <- q_g exp(eta L_g) renormalised after every batch,

L_g the mean loss of group g in the batch and 0 where the batch has none of it (Sagawa, Koh, Hashimoto & Liang 2020,
algorithm 1, https://arxiv.org/abs/1911.08731). Needs group labels of the training images, in every step.

Not promised: that a group with a handful of images can be fitted without memorising it; that is what weight decay and
early stopping on validation worst-group accuracy are for.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cfaug.errors import UsageError
from cfaug.learn.objectives.checks import as_columns


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
