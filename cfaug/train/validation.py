"""What a classifier says of images, and by which figure of the validation split an epoch or a penalty is chosen."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from cfaug.autocast import autocast
from cfaug.data.loading import Images, batches_of
from cfaug.errors import DataError, listed
from cfaug.train.models import as_input

log = logging.getLogger(__name__)

Selection = Literal["worst_group", "average", "last"]
BY_WORST_GROUP = "worst-group validation accuracy"
BY_AVERAGE = "average validation accuracy"
BY_LAST_EPOCH = "last epoch"
SAID: dict[str, str] = {"worst_group": BY_WORST_GROUP, "average": BY_AVERAGE, "last": BY_LAST_EPOCH}
"""``train.selection`` -> what a row of the results says."""


@dataclass(frozen=True)
class Validation:
    """images (V images: uint8 (V, C, H, W) or a stream of them; or their features, float (V, D)); targets (V,) int64; groups: the
    frame of ``Grouper.labels`` (or one Series, or an array of labels); names: every group that could occur, so that an empty
    one can be warned about; attributes: codes (V, A) of the spurious attributes, for methods that fit their last layer here."""

    images: Images
    targets: Tensor
    groups: pd.DataFrame | pd.Series | Sequence[str] | np.ndarray
    names: tuple[str, ...] = ()
    attributes: Tensor | None = None


def predict(model: nn.Module, images: Images, batch_size: int = 500, bf16: bool = False) -> Tensor:
    """Class codes (N,) int64 of images (N, C, H, W), uint8 or float in [-1, 1], or of features (N, D); the model's mode is restored."""
    return outputs(lambda batch: model(batch).argmax(1), model, images, batch_size, bf16)


def outputs(
    call: Callable[[Tensor], Tensor], model: nn.Module, images: Images, batch_size: int = 500, bf16: bool = False
) -> Tensor:
    """``call`` of every batch of images on the model's device, in eval mode, concatenated on the CPU."""
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    parts = []
    with torch.inference_mode(), autocast(device, bf16):
        for part in batches_of(images, batch_size):
            parts.append(call(as_input(part.to(device))).cpu())
    model.train(was_training)
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64)


class Scorer:
    """Average and worst-group accuracy of predictions on one validation set; groups are encoded once.

    Raises DataError for a class without a sample, or as many group labels as there are not samples. The log warns of empty groups.
    """

    def __init__(self, validation: Validation, classes: Sequence[str]) -> None:
        self.targets = validation.targets.numpy()
        present = np.bincount(self.targets, minlength=len(classes))
        missing = [classes[int(code)] for code in np.flatnonzero(present == 0)]
        if missing:
            raise DataError(
                f"validation: expected samples of every target class, got none of {listed(map(repr, missing), 1)}; move some "
                "of its images to split val, or the worst group cannot be watched"
            )
        groups = validation.groups
        frame = groups if isinstance(groups, pd.DataFrame) else pd.DataFrame({"group": np.asarray(groups)})
        if len(frame) != len(self.targets):
            raise DataError(
                f"validation: expected {len(self.targets)} group labels, got {len(frame)}; pass one per sample"
            )
        self.codes: list[np.ndarray] = []
        seen: set[str] = set()
        for name in frame:
            codes, values = pd.factorize(frame[name].astype(str))
            self.codes.append(codes)
            seen.update(values)
        empty = [name for name in validation.names if name not in seen]
        if empty:
            log.warning(
                "validation has no sample in %d of %d groups (%s): they take no part in choosing the epoch",
                len(empty), len(validation.names), listed(empty),
            )  # fmt: skip

    def __call__(self, predictions: Tensor | np.ndarray) -> tuple[float, float]:
        """(average, worst-group) accuracy, fractions."""
        right = np.asarray(predictions) == self.targets
        worst = min(float((np.bincount(code, weights=right) / np.bincount(code)).min()) for code in self.codes)
        return float(right.mean()), worst


def rank_of(average: float, worst: float, selection: Selection) -> tuple[float, float]:
    """What is compared: of two epochs the one with the greater pair is better."""
    return (average, worst) if selection == "average" else (worst, average)
