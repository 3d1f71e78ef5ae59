"""Losses of a batch: the mean cross-entropy, and the distance of counterfactual pairs."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from cfaug.errors import UsageError
from cfaug.train.objectives.checks import as_floats, as_targets


def erm_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """The mean cross-entropy of a batch, a float32 scalar.

    Args:
        logits: float, shape (B, K); half precision is computed in float32.
        targets: whole numbers in 0..K-1, shape (B,), where -100 is left out of the mean; or probabilities, float, shape (B, K),
            as ``lisa_mix`` and torchvision's CutMix and MixUp return them.

    Raises:
        UsageError: the batch is empty. Of everything else torch says what is wrong.
    """
    logits = as_floats(logits, "logits")
    return functional.cross_entropy(logits, targets.to(logits) if targets.is_floating_point() else targets.long())


def paired_consistency_loss(factual: Tensor, counterfactual: Tensor, targets: Tensor) -> Tensor:
    """How far the representations of counterfactual pairs are apart, given the class; a scalar.

        1/K' sum_y  1/n_y sum_{i: y_i = y} |phi(x_i) - phi(x'_i)|^2

    factual = phi(x), counterfactual = phi(x'), both (B, ...) float and row i of one pair (the features before the last
    layer, or the logits); targets (B,) whole numbers; n_y pairs of class y, K' classes in the batch, so that a frequent class
    does not decide. Add it to the loss of both images, times a coefficient. Gradients flow into both sides; only the
    classification loss keeps the representation from collapsing to a constant. The pairs need no group labels. Half precision is
    squared and summed in float32. Reddy, Bachu, Dash, Sharma, Sharma & Balasubramanian 2023, Rethinking Counterfactual Data
    Augmentation Under Confounding, https://arxiv.org/abs/2305.18183, ask that the representation of an image and its
    counterfactual agree given the class; the squared distance is our choice.

    Raises:
        UsageError: the two are not float tensors of one shape, or not one target per pair.
    """
    factual, counterfactual = as_floats(factual, "factual", 2), as_floats(counterfactual, "counterfactual", 2)
    if factual.shape != counterfactual.shape:
        raise UsageError(
            f"factual, counterfactual: expected one shape, got {tuple(factual.shape)} and {tuple(counterfactual.shape)}; "
            "pass row i of both from the same pair"
        )
    y = as_targets(targets, len(factual))
    distance = (factual - counterfactual).flatten(1).square().sum(dim=1)
    # not bincount: a class may be a large number
    classes, own, count = torch.unique(y, return_inverse=True, return_counts=True)
    mean: Tensor = (distance / count[own].to(distance.device)).sum() / len(classes)
    return mean
