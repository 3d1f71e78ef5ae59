"""Classifiers that judge: one per attribute of the image, called its reader, and the small probe of the leaks.

Readers are trained on unconfounded images where the source can make them; otherwise on the confounded ones with groups
resampled, and the result says so, because such a reader may share the shortcut.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cfaug.config import Recipe
from cfaug.data import AttributeDataset, load_images
from cfaug.data.images import to_uint8
from cfaug.data.loading import Images
from cfaug.judge.probes import Fit
from cfaug.stages.checked_inputs import Inputs
from cfaug.train import TensorImages, TrainSettings, train_classifier
from cfaug.train.features import BATCH, FeatureStore
from cfaug.train.heads import FIXED, Weighted, fit_logistic
from cfaug.train.method_data import group_codes
from cfaug.train.models import build_model
from cfaug.train.objectives import group_weights
from cfaug.train.validation import outputs

Pixels = npt.NDArray[np.uint8]


class Reader(Protocol):
    """What reads an attribute from images."""

    def predict(self, images: Images, /) -> Tensor: ...


MOST_PROBE_STEPS = 1000
"""Gradient steps of a probe, at most; a minute for 32 px on one core."""


def settings_of(recipe: Recipe) -> TrainSettings:
    """The classifier settings of a recipe."""
    train = recipe.train
    return TrainSettings(
        epochs=train.epochs,
        batch_size=train.batch_size,
        lr=train.learning_rate,
        weight_decay=train.weight_decay,
        optimizer=train.optimizer,
        schedule=train.schedule,
        clip=train.clip,
        model=train.model,
        weights=train.weights,
        normalization=train.normalization,
        selection=train.selection,
        method_settings=train.method_settings,
        device=train.device,
        threads=train.threads,
        bf16=train.bf16,
    )


def feature_store(recipe: Recipe, inputs: Inputs, place: Path | None, progress: bool = True) -> FeatureStore:
    """The features of the recipe's net, frozen; kept in ``place``, or only in memory."""
    train, (height, width, channels) = recipe.train, inputs.train.image(0).shape
    classes = len(inputs.schema[inputs.target].categories)
    net = build_model(train.model, channels, (height, width), classes, 0, train.weights, train.normalization)
    return FeatureStore(
        place, net, (height, width), recipe.data.workers, train.device, train.bf16, train.threads, progress
    )


def to_pixels(images: Tensor) -> Pixels:
    """(N, C, H, W), uint8 or float in [-1, 1], to uint8 (N, H, W, C)."""
    return quantised(images).permute(0, 2, 3, 1).contiguous().cpu().numpy()


def quantised(images: Tensor) -> Tensor:
    """(N, C, H, W), uint8 or float in [-1, 1], to uint8 as the shards have it."""
    if images.dtype == torch.uint8:
        return images
    return to_uint8(images)


def probe_of(recipe: Recipe, inputs: Inputs, seed: int) -> Fit:
    """What a probe is: the kind of classifier that the recipe trains, because what it cannot read does no harm to it."""
    if recipe.train.mode == "frozen":
        return _frozen_probe(feature_store(recipe, inputs, None, False))
    return probe_fit(recipe, len(inputs.train), seed)


def _frozen_probe(store: FeatureStore) -> Fit:
    """A linear head on the frozen net."""

    def fit(images: Tensor, codes: Tensor, classes: int) -> Callable[[Tensor], Tensor]:
        features = outputs(store.model.embed, store.model, images, BATCH).float()
        return _frozen_head(store, Weighted(features, codes, torch.ones(len(codes))), classes).predict

    return fit


def probe_fit(recipe: Recipe, sources: int, seed: int) -> Fit:
    """A ``Fit`` of the small CNN, with as many gradient steps as the recipe's classifiers get on ``sources`` images.

    So what a probe finds, a classifier could find. Rate and decay are its own: with those that suit a classifier, a net
    that has only a faint mark to find says the same of every image, and the leak looks like none.
    """
    train = recipe.train
    base = TrainSettings(lr=2e-3, weight_decay=1e-2, device=train.device, threads=train.threads, bf16=train.bf16)
    steps = min(MOST_PROBE_STEPS, train.epochs * max(1, sources // train.batch_size))

    def fit(images: Tensor, codes: Tensor, classes: int) -> Callable[[Tensor], Tensor]:
        epochs = math.ceil(steps / max(1, len(images) // base.batch_size))
        source = TensorImages(images, codes)
        return train_classifier("erm", source, None, replace(base, epochs=epochs), seed, classes).predict

    return fit


def attribute_readers(
    recipe: Recipe, inputs: Inputs, judged: Collection[str], progress: bool, features: Path | None = None
) -> tuple[dict[str, Reader], str]:
    """A reader for each categorical parent of the image, trained on other sources than those judged, and on what."""
    source: AttributeDataset = inputs.oracle or inputs.train
    basis = (
        "unconfounded images" if inputs.oracle else "the confounded training images, groups resampled: a weaker witness"
    )
    kept = [i for i in range(len(source)) if source.key(i) not in judged]
    most = max(1, int(recipe.data.memory_gb * 1e9 / source.image(0).nbytes))
    if len(kept) > most:
        kept = sorted(np.random.default_rng(recipe.seed).choice(kept, most, replace=False).tolist())
    table = source.table.iloc[kept]
    if recipe.train.mode == "frozen":
        return _frozen_readers(recipe, inputs, source, kept, progress, features), basis
    images = load_images(source, kept, progress=False)
    groups = torch.from_numpy(group_codes(table, inputs.grouper, "each"))
    readers: dict[str, Reader] = {}
    for name in inputs.graph.parents("image"):
        attribute = inputs.schema[name]
        if attribute.kind == "categorical":
            here = np.flatnonzero(table[name].notna())  # an image without the value has nothing to teach its reader
            codes = torch.from_numpy(np.asarray(inputs.schema.index(name, table[name].iloc[here])))
            rows = slice(None) if len(here) == len(table) else torch.from_numpy(here)  # a slice copies no image
            readers[name] = train_classifier(
                "erm" if inputs.oracle else "group_resampling",
                TensorImages(images[rows], codes, groups[rows]),
                None,
                settings_of(recipe),
                seed=recipe.seed,
                classes=attribute.categories,
                progress=progress,
            )
    return readers, basis


def _frozen_readers(
    recipe: Recipe, inputs: Inputs, source: AttributeDataset, kept: list[int], progress: bool, place: Path | None
) -> dict[str, Reader]:
    """Readers as linear heads on the recipe's frozen net; groups are re-weighted where the images are confounded."""
    store = feature_store(recipe, inputs, place, progress)
    features = store.of_dataset(source)[kept]
    table = source.table.iloc[kept]
    groups = torch.from_numpy(group_codes(table, inputs.grouper, "each"))
    weights = torch.ones(len(kept)) if inputs.oracle else group_weights(groups) * len(kept)
    readers: dict[str, Reader] = {}
    for name in inputs.graph.parents("image"):
        attribute = inputs.schema[name]
        if attribute.kind == "categorical":
            here = torch.from_numpy(np.flatnonzero(table[name].notna()))
            codes = torch.from_numpy(np.asarray(inputs.schema.index(name, table[name].iloc[here.numpy()])))
            data = Weighted(features[here], codes, weights[here])
            readers[name] = _frozen_head(store, data, len(attribute.categories))
    return readers


def _frozen_head(store: FeatureStore, data: Weighted, classes: int) -> FrozenReader:
    _, weight, bias = fit_logistic(data, classes, (FIXED,))[0]
    return FrozenReader(store, weight, bias)


@dataclass(frozen=True)
class FrozenReader:
    """A linear head and the frozen net below it."""

    store: FeatureStore
    weight: Tensor
    bias: Tensor

    def predict(self, images: Images) -> Tensor:
        """Classes (N,) of uint8 images (N, C, H, W), in memory or a stream."""
        features = outputs(self.store.model.embed, self.store.model, images, 64)
        return (features.float() @ self.weight.T + self.bias).argmax(1)
