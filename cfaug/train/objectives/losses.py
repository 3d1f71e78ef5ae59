"""Losses of a batch: means, weighted means, and the distance of counterfactual pairs."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from cfaug.errors import UsageError
from cfaug.train.objectives.checks import (
    as_codes,
    as_columns,
    as_logits,
    as_losses,
    as_targets,
    as_tensor,
    at_least_single,
    is_float,
    kind,
)


def erm_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy. logits (B, K) float, targets (B,) integer in 0..K-1; returns a scalar.

    A target of -100 is left out of the mean, as in torch (a batch of nothing else is nan). Half precision is computed in
    float32, and the scalar is float32. UsageError where the batch is empty or shapes do not fit, and for a target out of
    range on the CPU; on other devices torch reports it, in its own way, since looking were a wait for the device.
    """
    logits, targets = as_logits(logits), as_tensor(targets, "targets")
    if targets.is_floating_point() and targets.shape == logits.shape:
        return functional.cross_entropy(logits, at_least_single(targets))
    axis = min(logits.ndim - 1, 1)  # of the classes
    expected = (*logits.shape[:axis], *logits.shape[axis + 1 :])
    if tuple(targets.shape) != expected or targets.is_floating_point() or targets.is_complex():
        raise UsageError(
            f"targets: expected integer {expected}, one class a row of the logits, came {kind(targets)}; pass class codes"
        )
    y, classes = targets.long(), logits.shape[axis]
    try:
        return functional.cross_entropy(logits, y)
    except IndexError:  # on the CPU torch looks at every target itself
        wrong = y[((y < 0) & (y != -100)) | (y >= classes)]
        raise UsageError(
            f"targets: expected classes from 0 to {classes - 1}, or -100 for none, came {wrong.tolist()[0]}; check the class "
            "codes, or the width of the last layer"
        ) from None


def soft_target_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy -1/B sum_i sum_k t_ik log softmax(z_i)_k against class probabilities; returns a scalar.

    logits (B, K) float, targets (B, K) float with rows that sum to 1. With one-hot rows it is ``erm_loss``. Needs what
    ``lisa_mix``, or torchvision's CutMix and MixUp, return. Half precision is computed in float32, and the scalar is
    float32. UsageError for anything else.
    """
    logits = as_logits(logits)
    if logits.ndim != 2 or not is_float(targets) or targets.shape != logits.shape:
        raise UsageError(
            f"targets: expected class probabilities of the logits' shape {tuple(logits.shape)}, (B, K), came "
            f"{kind(targets)}; for class codes use erm_loss"
        )
    total = targets.detach().sum(1)
    if bool((targets.detach() < 0).any()) or not torch.allclose(total, torch.ones_like(total), atol=1e-3):
        raise UsageError("targets: expected rows of probabilities that sum to 1, they do not; normalise them")
    return functional.cross_entropy(logits, at_least_single(targets))


def group_weighted_loss(losses: Tensor, codes: Tensor, weights: Tensor) -> Tensor:
    """Importance-weighted risk 1/B sum_i w_{g_i} l_i; a scalar.

    losses (B,) one a sample (``cross_entropy(..., reduction="none")``), codes (B,) or (B, A) integer, weights (G,) one a
    group, as ``importance_weights`` gives them. With an attribute per column a sample's weight is the mean over its columns;
    -1 weighs 1, as under ERM. It is divided by B and not by the sum of the weights, so that the mean over batches is the
    risk under the reweighted distribution (Shimodaira 2000, https://doi.org/10.1016/S0378-3758(00)00115-4).
    Needs group labels of the training images in every step. With heavy weights an interpolating net ignores them (Byrd &
    Lipton 2019, https://arxiv.org/abs/1812.03372): use weight decay or early stopping, or sample by ``group_weights``.
    """
    losses = as_losses(losses)
    codes = as_codes(codes, len(losses))
    weights = as_tensor(weights, "weights")
    if weights.ndim != 1 or int(codes.max()) >= len(weights):
        raise UsageError(
            f"weights: expected one a group, (G,) with G above the largest code {int(codes.max())}, came "
            f"{tuple(weights.shape)}; pass groups= to importance_weights"
        )
    if not bool(torch.isfinite(weights).all()) or bool((weights < 0).any()):
        raise UsageError(
            "weights: expected finite numbers of at least 0, some are not; take those of importance_weights"
        )
    columns = as_columns(codes).to(losses.device)
    own = weights.to(losses)[columns.clamp(min=0)]
    return (torch.where(columns >= 0, own, torch.ones_like(own)).mean(dim=1) * losses).mean()


def paired_consistency_loss(factual: Tensor, counterfactual: Tensor, targets: Tensor) -> Tensor:
    """How far the representations of counterfactual pairs are apart, given the class; a scalar.

        1/K' sum_y  1/n_y sum_{i: y_i = y} |phi(x_i) - phi(x'_i)|^2

    factual = phi(x), counterfactual = phi(x'), both (B, ...) float and row i of one pair (the features before the last
    layer, or the logits); targets (B,) integer; n_y pairs of class y, K' classes in the batch, so that a frequent class
    does not decide. Add it to the loss of both images, times a coefficient. Gradients flow into both sides: collapse to a constant is
    held off by the classification loss only. Reddy, Bachu, Dash, Sharma, Sharma & Balasubramanian 2023, Rethinking
    Counterfactual Data Augmentation Under Confounding, https://arxiv.org/abs/2305.18183, ask that the representation of an
    image and its counterfactual agree given the class; the squared distance is our choice of how to ask it.
    Needs pairs, no group labels. Half precision is squared and summed in float32, and the scalar is float32.
    """
    if (
        not (is_float(factual) and is_float(counterfactual))
        or factual.shape != counterfactual.shape
        or factual.ndim < 2
        or not len(factual)
    ):
        raise UsageError(
            f"factual, counterfactual: expected float representations (B, ...) of B > 0 pairs, came {kind(factual)} and "
            f"{kind(counterfactual)}; pass row i of both from the same pair"
        )
    y = as_targets(targets, len(factual))
    difference = at_least_single(factual) - at_least_single(counterfactual)
    distance = difference.flatten(1).square().sum(dim=1)
    # not bincount: a class may be a large number
    classes, own, count = torch.unique(y, return_inverse=True, return_counts=True)
    mean: Tensor = (distance / count[own].to(distance.device)).sum() / len(classes)
    return mean
