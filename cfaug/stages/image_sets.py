"""Factual, null and counterfactual images of the judged sources, compared as sets: realism, memorisation, diversity, minimality."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor, nn

from cfaug.config import Recipe
from cfaug.data import AttributeDataset, load_images
from cfaug.judge import realism
from cfaug.stages.attribute_classifiers import Reader
from cfaug.stages.checked_inputs import Inputs
from cfaug.train import TrainedClassifier
from cfaug.train.features import FeatureStore
from cfaug.train.validation import outputs

MOST = 2000
"""Training and validation images, at most, that a set is compared with."""


def compared_sets(
    recipe: Recipe,
    inputs: Inputs,
    readers: Mapping[str, Reader],
    sets: Mapping[str, Tensor],
    table: pd.DataFrame,
    attributes: pd.DataFrame,
    rows: list[int],
    store: FeatureStore | None,
) -> dict[str, Any] | None:
    """Figures of each set, and the net that they are measured with; None where there is none, or too few images.

    Args:
        recipe: the recipe.
        inputs: the data.
        readers: the attributes' readers.
        sets: ``factual``, ``null`` and ``counterfactual`` images (N, C, H, W) of the same sources.
        table: their factual attributes.
        attributes: their counterfactual ones.
        rows: the sources' rows among the training images.
        store: features of the recipe's frozen net, where it has one.
    """
    reader = readers.get(inputs.target)
    net: Any
    if store is not None:
        net, named = store.model, recipe.train.model
    elif isinstance(reader, TrainedClassifier):
        net, named = reader.model, f"the reader of {inputs.target}"
    else:
        return None
    rng = np.random.default_rng([recipe.seed, 16])
    near = np.sort(rng.permutation(len(inputs.train))[:MOST])
    held = np.sort(rng.permutation(len(inputs.val))[:MOST])
    if min(len(rows), len(held)) < 10:
        return None
    train, val = _features(inputs.train, near, net, store), _features(inputs.val, held, net, store)
    place = {int(row): i for i, row in enumerate(near)}
    own = [place.get(row) for row in rows]
    targets = table[inputs.target].astype(str).tolist()
    made = {name: _units(outputs(net.embed, net, images, 64)) for name, images in sets.items()}  # type: ignore[arg-type]
    found: dict[str, Any] = {"features": named, "n": len(rows)}
    classes = inputs.train.table[inputs.target].iloc[near].astype(str).tolist()
    for name, one in made.items():
        real = realism.realism(one, val, recipe.seed)
        found[name] = {
            "mmd2": real.mmd2, "mmd2_interval": [real.low, real.high],
            "memorised": realism.memorisation(one, val, train, own),
            "diversity": realism.diversity(one, train, targets, classes),
        }  # fmt: skip
    found["minimality"] = _minimality(inputs, made, train, near, attributes, rng)
    return found


def _minimality(
    inputs: Inputs,
    made: Mapping[str, Any],
    train: Any,
    near: npt.NDArray[np.int64],
    attributes: pd.DataFrame,
    rng: np.random.Generator,
) -> float | None:
    """Of the images for which there is another real one with the class and the values that were wanted."""
    real = inputs.grouper.cross(inputs.train.table, missing=True).to_numpy()[near]
    wanted = inputs.grouper.cross(attributes, missing=True)
    pairs = [
        (i, int(rng.choice(rows)))
        for i, cell in enumerate(wanted)
        if cell and len(rows := np.flatnonzero(real == cell))
    ]
    if len(pairs) < 10:
        return None
    mine, other = (np.array(one) for one in zip(*pairs))
    return realism.minimality(made["factual"][mine], made["counterfactual"][mine], train[other])


def _features(
    dataset: AttributeDataset, rows: npt.NDArray[np.int64], net: nn.Module, store: FeatureStore | None
) -> Any:
    if store is not None:
        return _units(store.of_dataset(dataset)[torch.from_numpy(rows)])
    return _units(outputs(net.embed, net, load_images(dataset, rows, progress=False), 500))  # type: ignore[arg-type]


def _units(features: Tensor) -> Any:
    return nn.functional.normalize(features.float()).double().numpy()
