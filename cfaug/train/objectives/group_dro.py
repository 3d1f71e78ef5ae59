"""Group DRO: the loss of the worst mixture of groups, followed by an adversary that moves after every batch.

    min_theta max_q sum_g q_g L_g,      q_g <- q_g exp(eta L_g) renormalised after every batch,

L_g the mean loss of group g in the batch and 0 where the batch has none of it (Sagawa, Koh, Hashimoto & Liang 2020,
algorithm 1, https://arxiv.org/abs/1911.08731). Needs group labels of the training images, in every step.

The state is log q, so that q_g = exp(-1000) recovers when group g becomes the worst; as a number it would be 0, which no
factor raises again.

Not promised: that a group with a handful of images can be fitted without memorising it; that is what weight decay and
early stopping on validation worst-group accuracy are for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from cfaug.errors import UsageError
from cfaug.train.objectives.checks import as_codes, as_columns, as_floats, as_tensor, at_least


class GroupDRO:
    """The adversarial group weights q and the loss they define.

    ``groups`` is the number of group codes, ``step_size`` the paper's eta_q (0.01 in all its experiments),
    ``adjustment`` its generalisation constant C >= 0: C / sqrt(n_g) is added to the group's loss (needs ``counts``, n_g of
    all training images, (G,)). The state follows the losses' device. Under DDP every rank has its own q.
    """

    def __init__(
        self,
        groups: int,
        step_size: float = 0.01,
        adjustment: float = 0.0,
        counts: Tensor | npt.NDArray[Any] | Sequence[float] | None = None,
    ) -> None:
        self.step_size = at_least("GroupDRO step_size", step_size, 0.0)
        margin = at_least("GroupDRO adjustment", adjustment, 0.0)
        self._log = torch.full((groups,), 1.0 / groups, dtype=torch.float64).log()
        self._margin = torch.zeros(groups)
        if margin and counts is None:
            raise UsageError(
                "GroupDRO counts: expected the group counts with adjustment, got None; pass one number per group"
            )
        if counts is not None:
            each = as_tensor(counts)
            if tuple(each.shape) != (groups,):
                raise UsageError(
                    f"GroupDRO counts: expected shape ({groups},), got {tuple(each.shape)}; pass "
                    "torch.bincount(codes, minlength=groups)"
                )
            self._margin = torch.where(each > 0, margin / each.clamp(min=1).float().sqrt(), 0.0)

    @property
    def weights(self) -> Tensor:
        """q, (G,) float32, summing to 1, on the device of the last losses; below 1e-45 it reads 0, and still moves."""
        return self._log.exp().float()

    def __call__(self, losses: Tensor, codes: Tensor) -> Tensor:
        """losses (B,) per sample, codes (B,) or (B, A) integer, below ``groups``; moves q, returns sum_g q_g L_g (a scalar).

        With samples of no group: s sum_g q_g L_g + (1 - s) (their mean loss), s the share of those that have one.
        Half precision is summed in float32. A batch whose losses overflow leaves q as it was; its loss is inf or nan, and
        GradScaler skips it.
        """
        losses = as_floats(losses, "losses")
        columns = as_columns(as_codes(codes, len(losses)))
        if (high := int(columns.max())) >= len(self._log):
            raise UsageError(
                f"codes: expected codes below the number of groups {len(self._log)}, got {high}; count the groups of all images"
            )
        known = columns >= 0
        share = 1.0 if bool(known.all()) else float(known.double().mean())
        return self._moved(losses, columns, known, share)

    def _moved(self, losses: Tensor, columns: Tensor, known: Tensor, share: float) -> Tensor:
        """The loss, after q moved, all on the losses' device; nothing in here waits for it."""
        columns, known = columns.to(losses.device), known.to(losses.device)
        repeated, flat = losses[:, None].expand_as(columns), columns.clamp(min=0).reshape(-1)
        zero = torch.zeros(len(self._log), dtype=repeated.dtype, device=repeated.device)
        count = zero.index_add(0, flat, known.reshape(-1).to(repeated.dtype))
        # chosen, not multiplied by the mask: inf times 0 is nan
        total = zero.index_add(0, flat, torch.where(known, repeated, 0.0).reshape(-1))
        adjusted = total / count.clamp(min=1) + self._margin.to(zero) * (count > 0)
        # Apple's devices have no float64
        kept = self._log.to(zero.device, torch.float32 if zero.device.type == "mps" else torch.float64)
        moved = torch.log_softmax(kept + self.step_size * adjusted.detach(), dim=0)
        # one batch of infinite losses would leave nan for good; chosen on the device, without waiting for it
        self._log = torch.where(torch.isfinite(moved).all(), moved, kept)
        robust = (self._log.exp().to(zero) * adjusted).sum()
        return robust if share == 1.0 else robust * share + torch.where(known, 0.0, repeated).mean()

    def state_dict(self) -> dict[str, Tensor]:
        """What a resumed run continues from: log q, (G,) float64."""
        return {"log_weights": self._log.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state``. UsageError when it has a different number of groups."""
        found, size = state["log_weights"], len(self._log)
        if tuple(found.shape) != (size,):
            raise UsageError(
                f"GroupDRO state: expected log_weights of {size} groups, got shape {tuple(found.shape)}; build it with the groups "
                "that it was saved with"
            )
        self._log = found.detach().cpu().double()
