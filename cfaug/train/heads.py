"""Linear heads on frozen features: what each method of a table trains when the net stays as it is.

    min_W  sum_i w_i cross_entropy(W z_i + b, y_i) + |W|^2 / (2 C),      z = (features - mean) / deviation,   sum_i w_i = N

Methods that differ in what they show, and how often, are weights w of this convex problem (scikit-learn's lbfgs): re-sampling is its
expectation, a mixture counts every sample of an image by its share. C is the one that the named selection prefers on validation.
Methods with an objective of their own (GroupDRO, LISA, consistency, counterfactuals first) train the same head by steps, as
:mod:`cfaug.train.trainer` trains a net, with the decay of weights that the selection prefers. A convex problem has one solution, so
seeds change only what a method draws.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from cfaug.errors import DataError, UsageError
from cfaug.train.epochs import TrainSettings, balanced_subset
from cfaug.train.methods import Method, method_named, method_settings
from cfaug.train.objectives import class_weights, dfr, group_weights, jtt_weights
from cfaug.train.trainer import train_classifier
from cfaug.train.training_sets import MixedImages, TrainingSet
from cfaug.train.validation import SAID, Scorer, Validation, rank_of

Floats = npt.NDArray[np.float32]
Candidate = tuple[float, Tensor, Tensor]
"""Penalty or decay, weight (K, D), bias (K,) of a head on raw features."""
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""C of the convex heads to choose from, ascending; the fourth is used where nothing is selected."""
FIXED = 1e-1
IDENTIFICATION_C = (1e-5, 1e-4, 1e-3)
"""C of JTT's first head: as few epochs do, a strong penalty leaves errors on the training images."""
DECAYS = (0.01, 1.0, 10.0)
"""Weight decays of the heads that are trained by steps, to choose from."""
STEPS = TrainSettings(epochs=50, batch_size=64, lr=1e-3)
"""How those are trained: AdamW, one cycle."""


@dataclass(frozen=True)
class Head:
    """A linear head on raw features: weight (K, D), bias (K,), standardisation folded in; ``chosen``: its penalty or decay."""

    weight: Tensor
    bias: Tensor
    chosen: float
    seconds: float
    selection: str

    def predict(self, features: Tensor) -> Tensor:
        """(N, D) -> classes (N,) int64."""
        return (features @ self.weight.T + self.bias).argmax(1)


@dataclass(frozen=True)
class Weighted:
    """What a convex head is fitted on: features (M, D), classes (M,), and how much each row counts (M,)."""

    features: Tensor
    targets: Tensor
    weights: Tensor


def train_head(
    method: str,
    train: TrainingSet,
    validation: Validation,
    settings: TrainSettings,
    seed: int,
    classes: Sequence[str],
    synthetic: TrainingSet | None = None,
) -> Head:
    """Train the head of one method.

    Args:
        method: a name in METHODS.
        train: features (:class:`MixedImages` over a pool of them).
        validation: features, targets, groups and attributes.
        settings: selection and ``method_settings``; rates and epochs are the heads' own (STEPS) unless a method's settings say.
        seed: of what the method draws.
        classes: names of the target classes.
        synthetic: the counterfactuals alone, where the method needs them.

    Raises:
        UsageError, DataError: as :func:`cfaug.train.trainer.train_classifier`.
    """
    started = time.perf_counter()
    chosen = method_named(method)
    given = settings.method_settings or {}
    scorer = Scorer(validation, classes)
    if not isinstance(train, MixedImages):
        raise UsageError(f"method {method}: expected features in memory, got {type(train).__name__}")
    if chosen.last_layer:
        best, weight, bias = _last_layer(chosen, validation, synthetic, method_settings(chosen, given, 1), seed)
    elif chosen.objective == "erm" and not chosen.fake_first:
        best, weight, bias = _convex(chosen, train, validation, scorer, settings, seed, len(classes))
    else:
        best, weight, bias = _by_steps(chosen, train, validation, scorer, settings, seed, classes, synthetic)
    said = "fixed penalty" if settings.selection == "last" else SAID[settings.selection]
    return Head(weight, bias, best, time.perf_counter() - started, said)


def is_deterministic(method: str) -> bool:
    """Whether no seed changes the head of a method."""
    chosen = method_named(method)
    convex = chosen.objective == "erm" and not chosen.fake_first and not chosen.last_layer
    return convex and chosen.sampler != "subset"


def _convex(
    method: Method,
    train: MixedImages,
    validation: Validation,
    scorer: Scorer,
    settings: TrainSettings,
    seed: int,
    classes: int,
) -> Candidate:
    own = (settings.method_settings or {}).get(method.name, {})
    data = weighted(train)
    if method.sampler == "subset":
        codes = _codes(train, method)
        rows = balanced_subset(codes, torch.Generator().manual_seed(seed))
        data = Weighted(data.features[rows], data.targets[rows], torch.ones(len(rows)))
    elif method.sampler == "class":
        data = replace(data, weights=class_weights(data.targets) * len(data.targets))
    elif method.sampler == "origin":
        data = weighted(train, balanced=True)
    elif method.sampler == "group":
        data = replace(data, weights=group_weights(_codes(train, method)) * len(data.targets))
    penalties = own.get("penalties", PENALTIES) if settings.selection != "last" else (FIXED,)
    candidates = [data]
    if method.sampler == "errors":
        upweight = method_settings(method, settings.method_settings or {}, 1)["upweight"]
        candidates = [
            replace(data, weights=jtt_weights(first, data.targets, upweight) * len(data.targets))
            for first in _first_heads(data, classes, settings)
        ]
    strengths = np.atleast_1d(penalties).tolist()
    found = (head for one in candidates for head in fit_logistic(one, classes, strengths))
    return _preferred(found, validation, scorer, settings)


def _preferred(
    found: Iterable[Candidate], validation: Validation, scorer: Scorer, settings: TrainSettings
) -> Candidate:
    """The head that the selection prefers on the validation features; among equals the first."""
    seen: Any = validation.images

    def rank(head: Candidate) -> tuple[float, float]:
        _, weight, bias = head
        average, worst = scorer((seen @ weight.T + bias).argmax(1))
        return rank_of(average, worst, settings.selection)

    return max(found, key=rank)


def _first_heads(data: Weighted, classes: int, settings: TrainSettings) -> list[Tensor]:
    strengths = IDENTIFICATION_C if settings.selection != "last" else IDENTIFICATION_C[1:2]
    return [
        (data.features @ weight.T + bias).argmax(1) for _, weight, bias in fit_logistic(data, classes, list(strengths))
    ]


def weighted(train: MixedImages, balanced: bool = False) -> Weighted:
    """Every row that an epoch can show, with the share of epochs in which it does: the expectation of the mixture's draw.

    ``balanced``: within each origin every group counts the same.
    """
    if train.draw is None:
        return Weighted(train.pool, train.targets, torch.ones(len(train.targets)))
    relative = train.pool_balance if balanced and train.pool_balance is not None else torch.ones(len(train.pool))
    drawn: Any = train.draw
    dataset, place = drawn.dataset, drawn.place
    matches, p, null_p = dataset.matches, dataset.p, dataset.null_p
    rows, targets, weights = [], [], []
    for i, (start, real, null) in enumerate(
        zip(matches.start.tolist(), matches.counterfactuals.tolist(), matches.nulls.tolist())
    ):
        label = int(train.targets[i])
        own = 1.0 - (p if real else 0.0) - (null_p if null else 0.0)
        parts = [(np.array([i]), own)]
        if real and p:
            parts.append((place[matches.rows[start : start + real]], p / real))
        if null and null_p:
            parts.append((place[matches.rows[start + real : start + real + null]], null_p / null))
        for where, each in parts:
            if each > 1e-9:
                rows.extend(where.tolist())
                targets.extend([label] * len(where))
                weights.extend([each] * len(where))
    shares = torch.tensor(weights) * relative[rows]
    kept = shares > 0
    shares = shares[kept] * (len(train.targets) / float(shares.sum()))
    return Weighted(train.pool[rows][kept], torch.tensor(targets)[kept], shares)


def fit_logistic(data: Weighted, classes: int, penalties: Sequence[float]) -> list[Candidate]:
    """(C, weight (K, D), bias (K,)) of raw features for each C, each fit started from the one before. DataError for one class alone."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    y = data.targets.numpy()
    if len(np.unique(y)) < 2:
        raise DataError("training: expected images of two classes or more, got one; check the train split")
    mean, scale = data.features.mean(0), data.features.std(0)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    z = ((data.features - mean) / scale).numpy()
    found = []
    model = LogisticRegression(warm_start=True, max_iter=100, tol=1e-4)
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", ConvergenceWarning
        )  # weak penalties on separable classes: the limit is what is wanted
        for c in sorted(penalties):
            model.C = c
            model.fit(z, y, sample_weight=data.weights.numpy().astype(np.float32))
            weight = np.zeros((classes, z.shape[1]), dtype=np.float32)
            bias = np.full(classes, -1e9 if len(model.classes_) < classes else 0.0, dtype=np.float32)
            if len(model.classes_) == 2:
                weight[model.classes_] = np.vstack([-model.coef_, model.coef_]) / 2
                bias[model.classes_] = np.concatenate([-model.intercept_, model.intercept_]) / 2
            else:
                weight[model.classes_], bias[model.classes_] = model.coef_, model.intercept_
            raw = torch.from_numpy(weight) / scale
            found.append((float(c), raw, torch.from_numpy(bias) - raw @ mean))
    return found


def _codes(train: MixedImages, method: Method) -> Tensor:
    codes = train.groups(0)
    if codes is None:
        raise UsageError(
            f"method {method.name}: expected group codes with the training features, got none; pass groups="
        )
    return codes


def _last_layer(
    method: Method, validation: Validation, synthetic: TrainingSet | None, own: Mapping[str, Any], seed: int
) -> Candidate:
    if validation.attributes is None:
        raise UsageError(
            f"method {method.name}: expected the spurious attributes of the validation images, got none; pass attributes="
        )
    seen: Any = validation.images
    features, targets, levels = [seen], [validation.targets], [validation.attributes]
    if method.needs_shards and isinstance(synthetic, MixedImages) and synthetic.draw is not None:
        drawn = synthetic.draw(0)
        features.append(synthetic.pool[drawn])
        targets.append(synthetic.targets)
        levels.append(synthetic.attributes(0))  # type: ignore[arg-type]
    layer = dfr(
        torch.cat(features), torch.cat(targets), torch.cat(levels), own["c"], int(own["subsamples"]), seed, penalty=own["penalty"]
    )  # fmt: skip
    return layer.c, layer.weight.float(), layer.bias.float()


class LinearHead(nn.Module):
    """Logits of features (B, D), which it standardises; an embedding that is the standardised features."""

    def __init__(self, mean: Tensor, scale: Tensor, classes: int) -> None:
        super().__init__()
        self.last = nn.Linear(len(mean), classes)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)

    def embed(self, features: Tensor) -> Tensor:
        """(B, D) standardised."""
        return (features - self.mean) / self.scale  # type: ignore[no-any-return, operator]

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.last(self.embed(features))
        return logits


def _by_steps(
    method: Method,
    train: MixedImages,
    validation: Validation,
    scorer: Scorer,
    settings: TrainSettings,
    seed: int,
    classes: Sequence[str],
    synthetic: TrainingSet | None,
) -> Candidate:
    given = dict((settings.method_settings or {}).get(method.name, {}))
    decays = [given.pop("weight_decay")] if "weight_decay" in given else list(DECAYS)
    if settings.selection == "last":
        decays = decays[:1]
    mean, scale = train.pool.mean(0), train.pool.std(0)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))

    def head(decay: float) -> Candidate:
        own = replace(
            STEPS,
            weight_decay=decay,
            selection=settings.selection,
            threads=settings.threads,
            method_settings={method.name: given},
        )
        model = LinearHead(mean, scale, len(classes))
        train_classifier(method.name, train, validation, own, seed, classes, synthetic=synthetic, model=model)
        raw = model.last.weight.detach() / scale
        return decay, raw, model.last.bias.detach() - raw @ mean

    return _preferred(map(head, decays), validation, scorer, settings)
