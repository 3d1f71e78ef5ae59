"""Probes: what can be read from generated images that should not be there (a classifier would read it too).

    original attribute   the factual value of an intervened attribute, from the counterfactual      chance: it is gone
    provenance           generated or not, one kind of image against a different one                0.5: no mark is left
    told by colour       the target, from colour statistics alone                                   as in clean images

Every probe is judged on sources that it was not trained on. A probe that finds nothing proves little: a better one may
find something. A probe that finds something proves the leak. Arrays and callables only: a ``Fit`` trains a net on
uint8 images (N, C, H, W) and codes (N,) and returns its predictor.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from cfaug.errors import UsageError
from cfaug.judge.accuracy import wilson_interval

Fit = Callable[[Tensor, Tensor, int], Callable[[Tensor], Tensor]]
"""(uint8 images (N, C, H, W), int64 codes (N,), number of classes) -> a predictor of codes (M,) of images."""
Pixels = npt.NDArray[np.uint8]
Rows = npt.NDArray[np.int64]

LEAST_SOURCES = 50
"""With fewer sources a probe gives None, because its interval would be wider than any leak."""
HELD_OUT = 1 / 3


def split_by_source(sources: Sequence[str], seed: int, share: float = HELD_OUT) -> tuple[Rows, Rows]:
    """(training rows, held-out rows), about ``share`` of the sources held out, and no source on both sides."""
    codes, names = pd.factorize(np.asarray(sources, dtype=object))
    chosen = np.random.default_rng(seed).permutation(len(names))[: round(share * len(names))]
    held = np.isin(codes, chosen)
    return np.flatnonzero(~held), np.flatnonzero(held)


def original_attribute(
    fit: Fit,
    images: Tensor,
    originals: Sequence[str],
    sources: Sequence[str],
    seed: int = 0,
    targets: Sequence[str] | None = None,
) -> dict[str, Any] | None:
    """How well a probe recovers the original value of an attribute from counterfactuals that drew it anew.

    ``images`` uint8 (N, C, H, W) counterfactuals, their intervention drawn independently of the originals;
    ``originals`` the factual values (levels, for a continuous attribute). The sources should be unconfounded. Where
    they cannot be, give ``targets``: then the target tells part of the original without any leak, and
    ``given_target`` is what the majority given the target reaches, ``above_target`` the accuracy above that.

    Returns accuracy, chance (the largest class's share of the held-out images), above_chance, n (held-out images)
    and ci95 (Wilson's interval of the accuracy); None with fewer than LEAST_SOURCES sources or a single value.
    """
    _same_length(images, originals, sources)
    codes, values = pd.factorize(np.asarray(originals, dtype=object), sort=True)
    if len(set(sources)) < LEAST_SOURCES or len(values) < 2:
        return None
    train, held = split_by_source(sources, seed)
    predict = fit(images[train], torch.from_numpy(codes[train].astype(np.int64)), len(values))
    right = predict(images[held]).cpu().numpy() == codes[held]
    chance = float(np.bincount(codes[held]).max() / len(held))
    found: dict[str, Any] = {"n": len(held), "accuracy": float(right.mean()), "chance": chance}
    found["above_chance"] = found["accuracy"] - chance
    found["ci95"] = list(wilson_interval(int(right.sum()), len(held)))
    if targets is not None:
        _same_length(images, targets, sources)
        told = _majority(codes, np.asarray(targets, dtype=object), train, held)
        found |= {"given_target": told, "above_target": found["accuracy"] - told}
    return found


def _majority(codes: npt.NDArray[np.int64], targets: npt.NDArray[Any], train: Rows, held: Rows) -> float:
    """Accuracy on the held-out rows of the commonest training code given the target."""
    classes = pd.factorize(targets)[0]
    counts = np.zeros((classes.max() + 1, codes.max() + 1))
    np.add.at(counts, (classes[train], codes[train]), 1)
    return float((counts.argmax(1)[classes[held]] == codes[held]).mean())


def provenance(fit: Fit, first: Tensor, second: Tensor, sources: Sequence[str], seed: int = 0) -> dict[str, Any] | None:
    """How well a probe tells two kinds of images apart; row i of both is made from ``sources[i]``.

    Both kinds must show the same distribution of target and attributes, or the probe reads that instead of a mark.
    Both images of a source stand on one side of the split.

    Returns balanced_accuracy (chance 0.5), n (held-out images of both kinds) and ci95 (Wilson's, which takes the two
    images of a source for independent); None with fewer than LEAST_SOURCES sources.
    """
    _same_length(first, second, sources)
    if len(set(sources)) < LEAST_SOURCES:
        return None
    train, held = split_by_source(sources, seed)
    codes = torch.cat([torch.zeros(len(train), dtype=torch.int64), torch.ones(len(train), dtype=torch.int64)])
    predict = fit(torch.cat([first[train], second[train]]), codes, 2)
    right = torch.cat([predict(first[held]) == 0, predict(second[held]) == 1]).cpu().numpy()
    return {
        "n": len(right),
        "balanced_accuracy": float(right.mean()),  # there are as many images of one kind as of the other
        "ci95": list(wilson_interval(int(right.sum()), len(right))),
    }


def told_by_colour(images: Sequence[Pixels], targets: Sequence[str], sources: Sequence[str], seed: int) -> float | None:
    """Cross-validated balanced accuracy of the target from colour statistics alone: all that a lazy classifier would use.

    ``images`` uint8 (H, W, C); mean, deviation and tails of every channel feed a logistic regression; five folds, and
    no source on both sides of one. None where there are too few images.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rarest = min(Counter(targets).values(), default=0)
    if len(images) < LEAST_SOURCES or rarest < 10 or len(set(targets)) < 2:
        return None
    flat = np.stack([image.reshape(-1, image.shape[-1]) for image in images]).astype(np.float64)
    tails = np.quantile(flat, [0.1, 0.9], axis=1).transpose(1, 0, 2).reshape(len(flat), -1)
    statistics = np.concatenate([flat.mean(1), flat.std(1), tails], axis=1)
    probe = make_pipeline(
        StandardScaler(), LogisticRegression(max_iter=300, random_state=seed, class_weight="balanced")
    )
    folds = StratifiedGroupKFold(5, shuffle=True, random_state=seed)
    said = cross_val_predict(probe, statistics, np.asarray(targets), groups=np.asarray(sources), cv=folds)
    return float(balanced_accuracy_score(targets, said))


def above(found: float | None, reference: float | None) -> float | None:
    """``found - reference``; None where either is not known."""
    return None if found is None or reference is None else found - reference


def _same_length(*parts: Sequence[Any] | Tensor) -> None:
    if len({len(part) for part in parts}) > 1:
        raise UsageError(
            f"expected one label and one source per image, got {[len(part) for part in parts]}; pass equal lengths"
        )
